"""A trial's model on disk: `model.safetensors` (trained tensors, without the adapter's), and `adapter/` (PEFT's format) or
`classifier.skops` (scikit-learn's) where there is one.

Beside the tensors stands what they fit: the backbone's weights by hash, the cut, the domains in the order of their rows,
the targets. PEFT itself loads an adapter of two blocks onto a tail of one without a word, so this is checked here.
"""

import json
from dataclasses import asdict
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from pipeline.backbones.base import Backbone
from pipeline.backbones.texts import TextTower
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import reading
from pipeline.disk.writing import write_hashed, write_tensors
from pipeline.errors import WorkError
from pipeline.models.base import Encoders, Facts, Model, TextFacts
from pipeline.models.content import AGAIN, check_files, hash_files, read_record
from pipeline.models.metadata import Names


def make_model(config: Config, facts: Facts, backbone: Backbone | None, text: TextTower | None = None) -> Model:
    """A new model with weights drawn from the trial's seed; the global random state is left as it was.

    `backbone` and `text` may be None where the encoders of images and of texts do not learn. Raises UserError if a tower has
    fewer blocks than are to be trained, too small a grid, or no network to train.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        encoder = config.model.encoder.build(backbone)
        if config.model.head.reads_texts:
            encoder = Encoders(encoder, config.model.text.build(text))
        return config.model.head.make_model(config, facts, encoder)


def save_model(model: Model, facts: Facts, trial: TrialDir) -> None:
    """Write the trained tensors; equal models give equal bytes."""
    model.save_more(trial)
    state = {name: tensor.cpu().contiguous() for name, tensor in model.own_state().items()}
    write_tensors(trial.model, state, {"carabid": json.dumps(asdict(facts), sort_keys=True)})


def write_trained(trial: TrialDir, record: dict[str, Any]) -> None:
    """Write trained.json: the record with the sha256 of each file of the model, and of itself."""
    write_hashed(trial.trained, record | {"content": hash_files(trial)})


def read_trained(trial: TrialDir) -> dict[str, Any]:
    """trained.json, once it and all files of the model are known to hold what was written. Raises WorkError."""
    record, hashes = read_record(trial)
    if not hashes:  # written before there were hashes: at least nothing is cut short
        for path in trial.path.rglob("*.safetensors"):
            with reading(path, AGAIN), safe_open(path, framework="pt"):
                pass
    check_files(trial, hashes)
    return record


def load_facts(trial: TrialDir) -> Facts:
    """What the model in a trial's folder was built for. Raises WorkError if there is none, or a damaged one."""
    if not trial.model.is_file():
        raise WorkError(f"{trial.path}: there is no model.safetensors: `carabid train` makes it (again)")
    with reading(trial.model, AGAIN), safe_open(trial.model, framework="pt") as file:
        values: dict[str, Any] = json.loads(file.metadata()["carabid"])
        names = Names(**{kind: tuple(known) for kind, known in values["names"].items()})
        lists = {key: tuple(values.get(key, ())) for key in ("targets", "auxiliary", "beside")}
        text = values.get("text")
        return Facts(**values | lists | {"names": names, "text": text and TextFacts(**text)})


def load_model(config: Config, trial: TrialDir, backbone: Backbone | None, text: TextTower | None = None) -> Model:
    """Rebuild a trained model (`read_trained` vouches for its files), to evaluate. Without its text tower, `text`, it embeds
    images and knows its classes, and embeds no texts. Raises WorkError for another backbone."""
    facts = load_facts(trial)
    with safe_open(trial.model, framework="pt") as file:
        there = [name for name in file.keys() if text is not None or not name.startswith("text_encoder.")]  # noqa: SIM118
        state = {name: file.get_tensor(name) for name in there}
    encoder: Any = _load_encoder(config, facts, trial, backbone)
    if facts.text is not None:
        encoder = Encoders(encoder, _load_text_encoder(config, facts.text, trial, text))
    model: Model = config.model.head.make_model(config, facts, encoder)
    model.restore(state)
    model.load_more(trial)
    if missing := model.own_state().keys() ^ state.keys():
        raise WorkError(f"{trial.model} does not fit its config.yaml: {', '.join(sorted(missing)[:5])} stand in one of them only")
    model.tta, model.trained = config.evaluate.tta, frozenset(n for n, p in model.named_parameters() if p.requires_grad)
    return model.eval().requires_grad_(False)


def _load_encoder(config: Config, facts: Facts, trial: TrialDir, backbone: Backbone | None) -> nn.Module:
    encoder = config.model.encoder
    if backbone is not None:
        if (found := backbone.weights_hash()) != facts.base_weights:
            raise WorkError(
                f"{trial.path}: this model was trained on backbone weights {facts.base_weights[:12]}, the ones loaded now are "
                f"{found[:12]}. Bring the old weights back, or train again."
            )
        if encoder.tail_blocks and (cut := backbone.cut_before(encoder.tail_blocks)) != facts.cut:
            raise WorkError(
                f"{trial.path}: this model was trained on a tail that begins after block {facts.cut}, model.encoder.blocks now "
                f"makes it begin after block {cut}. Set model.encoder.blocks in its config.yaml back, or train again."
            )
    return encoder.load(backbone, trial.adapter)


def _load_text_encoder(config: Config, facts: TextFacts, trial: TrialDir, tower: TextTower | None) -> nn.Module:
    encoder = config.model.text
    if tower is None:
        return nn.Identity()
    if (found := tower.weights_hash()) != facts.base_weights:
        raise WorkError(
            f"{trial.path}: this model was trained on a text tower of weights {facts.base_weights[:12]}, the ones loaded now are "
            f"{found[:12]}. Bring the old weights back, or train again."
        )
    return encoder.load(tower, trial.text_adapter)
