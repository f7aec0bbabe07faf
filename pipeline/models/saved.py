"""A trial's model on disk: `model.safetensors` (trained tensors, without the adapter's), and `adapter/` (PEFT's format) or
`classifier.skops` (scikit-learn's) where there is one.

Beside the tensors stands what they fit: the backbone's weights by hash, the cut, the domains in the order of their rows,
the targets. PEFT itself loads an adapter of two blocks onto a tail of one without a word, so this is checked here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline.backbones.base import Backbone
from pipeline.config.encoder import Encoder
from pipeline.config.head import ClassifierHead
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir, read_json, write_tensors
from pipeline.errors import WorkError
from pipeline.models.baselines import Boosting, Climatology
from pipeline.models.classifiers import Classifier, load_classifier, save_classifier
from pipeline.models.encoders import is_whole_file, make_encoder
from pipeline.models.learner import DomainEmbedding, Learner, SpeciesEmbedding, make_mlp, trained_state
from pipeline.models.metadata import Names
from pipeline.models.outputs import make_output
from pipeline.models.pooling import make_pooling


@dataclass(frozen=True)
class Facts:
    """What a model was built for."""

    targets: tuple[str, ...]
    names: Names
    """What training images were called, in the order of the embeddings' rows."""
    embed_dim: int
    """Width of the backbone's pooled embedding."""
    base_weights: str
    """sha256 of the backbone's image tower."""
    cut: int | None
    """First block of the tail; None where there is no tail."""
    feature_key: str
    auxiliary: tuple[str, ...] = ()
    """Labels that are learnt beside the targets, and predicted behind them."""

    @property
    def learnt(self) -> tuple[str, ...]:
        """The columns of the data's table that the model learns, in the order of its predictions."""
        return self.targets + self.auxiliary

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains that were trained on."""
        return self.names.domains


SCALES = ("target_mean", "target_scale", "feature_mean", "feature_scale")
"""Buffers of a Learner that follow from the training data."""
Model = Learner | Climatology | Boosting | Classifier


def make_model(config: Config, facts: Facts, backbone: Backbone | None) -> Model:
    """A new model with weights drawn from the trial's seed; the global random state is left as it was."""
    if (baseline := make_baseline(config, facts)) is not None:
        return baseline
    if (classifier := make_classifier(config, facts)) is not None:
        return classifier
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return assemble(config, facts, make_encoder(config.model.encoder, backbone))


def make_baseline(config: Config, facts: Facts) -> Climatology | Boosting | None:
    """A model that looks at no image, if the head is one."""
    head = config.model.head
    if head.kind == "climatology":
        return Climatology(head, facts.names)
    return Boosting(facts.names) if head.kind == "boosting" else None


def make_classifier(config: Config, facts: Facts) -> Classifier | None:
    """A classifier of scikit-learn, if the head is one."""
    head = config.model.head
    return Classifier(head, facts.targets, config.model.normalize) if isinstance(head, ClassifierHead) else None


def assemble(config: Config, facts: Facts, encoder: nn.Module) -> Learner:
    """Head, embeddings of names and pooling of the right widths around an encoder."""
    model, names, n_targets = config.model, facts.names, len(facts.learnt)
    width = model.encoder.embedding_width(facts.embed_dim)
    hidden = model.head.hidden if model.head.kind == "mlp" else ()
    domain = DomainEmbedding(len(names.domains), width) if model.domain_embedding else None
    output = make_output(config.loss, len(facts.targets))
    head = make_mlp([width, *hidden, n_targets * output.n])
    species = SpeciesEmbedding(len(names.species), len(names.genera), width) if model.species_embedding else None
    pooling, n_features = make_pooling(model.pool, width), width if model.standardize_features else 1
    learner = Learner(encoder, head, domain, model.normalize, n_targets, output, species, pooling, n_features)
    learner.kind_of_encoder = model.encoder
    return learner


def save_model(model: Model, facts: Facts, trial: TrialDir) -> None:
    """Write the trained tensors; equal models give equal bytes."""
    if isinstance(model, Learner):
        model.kind_of_encoder.save(model.encoder, trial)
    if isinstance(model, Classifier):
        save_classifier(model, trial)
    state = {name: tensor.cpu().contiguous() for name, tensor in _own_state(model).items()}
    write_tensors(trial.model, state, {"carabid": json.dumps(asdict(facts), sort_keys=True)})


def read_trained(trial: TrialDir) -> dict[str, Any]:
    """trained.json. Raises WorkError if it cannot be read."""
    try:
        record: dict[str, Any] = read_json(trial.trained)
        return {**record, "config_hash": record["config_hash"]}
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(trial.trained, error) from error


def is_whole(trial: TrialDir, encoder: Encoder, classifier: bool = False) -> bool:
    """Whether the files of a trained model are there, each as long as its header says, or a whole archive."""
    if classifier and not is_zipfile(trial.classifier):
        return False
    return is_whole_file(trial.model) and encoder.files_are_whole(trial)


def load_facts(trial: TrialDir) -> Facts:
    """What the model in a trial's folder was built for. Raises WorkError if there is none, or a damaged one."""
    if not trial.model.is_file():
        raise WorkError(f"{trial.path}: there is no model.safetensors: `carabid train` makes it (again)")
    try:
        with safe_open(trial.model, framework="pt") as file:
            values: dict[str, Any] = json.loads(file.metadata()["carabid"])
            names = Names(**{kind: tuple(known) for kind, known in values["names"].items()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _damaged(trial.model, error) from error
    lists = {key: tuple(values.get(key, ())) for key in ("targets", "auxiliary")}
    return Facts(**values | lists | {"names": names})


def _damaged(path: Path, error: Exception) -> WorkError:
    return WorkError(f"{path} is damaged ({error}): `carabid train` with this trial's configuration makes it again")


def load_model(config: Config, trial: TrialDir, backbone: Backbone | None) -> Model:
    """Rebuild a trained model, in evaluation mode. Raises WorkError if the backbone is not the one it was trained on."""
    facts = load_facts(trial)
    with safe_open(trial.model, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    if (baseline := make_baseline(config, facts)) is not None:
        baseline.remember(state)
        return baseline.eval()
    if (classifier := make_classifier(config, facts)) is not None:
        load_classifier(classifier, trial)
        return classifier.eval()
    model = assemble(config, facts, _load_encoder(config, facts, trial, backbone))
    model.load_state_dict(state, strict=False)
    missing = _own_state(model).keys() ^ state.keys()
    if missing:
        raise WorkError(
            f"{trial.model} does not fit its config.yaml: {', '.join(sorted(missing)[:5])} stand in one of them only"
        )
    return model.eval().requires_grad_(False)


def _load_encoder(config: Config, facts: Facts, trial: TrialDir, backbone: Backbone | None) -> nn.Module:
    encoder = config.model.encoder
    if backbone is not None:
        _check_base(facts, backbone, trial.path)
        if encoder.tail_blocks:
            _check_cut(facts, backbone.cut_before(encoder.tail_blocks), trial.path)
    if not encoder.files_are_whole(trial):  # PEFT would look for what is missing on the Hub
        raise _damaged(trial.adapter, FileNotFoundError("a file is missing or cut short"))
    loaded: nn.Module = encoder.load(backbone, trial)
    return loaded


def _check_base(facts: Facts, backbone: Backbone, path: Path) -> None:
    found = backbone.weights_hash()
    if found != facts.base_weights:
        raise WorkError(
            f"{path}: this model was trained on backbone weights {facts.base_weights[:12]}, the ones loaded now are "
            f"{found[:12]}. Bring the old weights back, or train again."
        )


def _check_cut(facts: Facts, cut: int, path: Path) -> None:
    """PEFT would put an adapter of two blocks onto a tail of one without a word."""
    if cut != facts.cut:
        raise WorkError(
            f"{path}: this model was trained on a tail that begins after block {facts.cut}, model.encoder.blocks now makes "
            f"it begin after block {cut}. Set model.encoder.blocks in its config.yaml back, or train again."
        )


def _own_state(model: Model) -> dict[str, Tensor]:
    """Trained tensors but those that an encoder saves itself, and the scales."""
    if not isinstance(model, Learner):
        return dict(model.state_dict())
    apart = model.kind_of_encoder.has_own_files
    state = {n: t for n, t in trained_state(model).items() if not (apart and n.startswith("encoder."))}
    return state | {name: model.get_buffer(name) for name in SCALES}
