"""The export of trained trials as a submission to a challenge's platform: a folder that needs nothing of this package.

`model.py` is this folder's `beetles.py` or `butterflies.py` as it stands, beside it `network.py`, `towers.py`, `seal.py` and the
package's `decoding.py`, `correction.py` and `plain.py`; `submission.json` says what the members are made of, with the hash of
every file, `weights.pt` holds their tensors: adapters merged into plain weights, under the names of the backbone's own library,
and classifiers of scikit-learn as plain arrays.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone, Network, Tail
from pipeline.config.identity import token_kind
from pipeline.config.trial import Config
from pipeline.data import correction, decoding
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import atomic_folder, atomic_path, write_text
from pipeline.errors import UserError
from pipeline.export.platforms import PLATFORMS, Spec
from pipeline.export.seal import seal
from pipeline.models import plain
from pipeline.models.base import Facts, Model
from pipeline.models.saved import load_facts, load_model, read_trained
from pipeline.stages.predict import ensemble_at, members_of, trained_config, trial_at
from pipeline.tasks import load_task

State = dict[str, Tensor]


@dataclass(frozen=True)
class Member:
    """A trained trial with its model, on the CPU."""

    trial: TrialDir
    config: Config
    challenge: str
    says: tuple[str, ...]
    facts: Facts
    model: Model


def export(trials: Sequence[Path], out: Path, zipped: bool, with_backbone: bool) -> Path:
    """Write the submission of one trial, of several, or of an ensemble to the folder `out`, and beside it `out`.zip if asked.

    Of several trials, a forecast is the equal mixture of theirs, a score is of their mean log odds; an ensemble (a folder of
    `ensembles/`) has its own calibration.
    Returns what was written. Raises UserError for what is no trained trial, for trials of different backbones, for a folder
    that exists, and for a backbone that the platform could not fetch; WorkError for an ensemble that is out of date.
    """
    trials, calibration = _members_of(trials)
    if not trials:
        raise UserError("name the trials to export, one or more: `carabid status` lists them")
    out = out.expanduser().absolute()
    target = out.with_name(f"{out.name}.zip") if zipped else out
    if (taken := next((path for path in (out, target) if path.exists()), None)) is not None:
        raise UserError(f"{taken} exists: name another --out, or remove it")
    configs = [trained_config(trial_at(trial)) for trial in trials]
    backbone = _shared_backbone(trials, configs, with_backbone)
    members = [_load(trial_at(trial), config, backbone) for trial, config in zip(trials, configs, strict=True)]
    _check_alike(members)
    with atomic_folder(out) as folder:
        _write(folder, members, backbone, with_backbone, calibration)
    if zipped:
        with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(out.rglob("*")):
                archive.write(path, path.relative_to(out))
    return target


def _members_of(trials: Sequence[Path]) -> tuple[Sequence[Path], Spec | None]:
    """The trials of an ensemble's folder and what calibrates them together; other folders as they are."""
    ensembles = [found for trial in trials if (found := ensemble_at(trial)) is not None]
    if not ensembles:
        return trials, None
    if len(trials) > 1:
        raise UserError(f"{ensembles[0].path} is an ensemble: export it alone, or name the trials of all of them")
    members, calibration = members_of(ensembles[0].path)
    return [trial.path for trial in members], calibration


def _load(trial: TrialDir, config: Config, backbone: Backbone) -> Member:
    facts, challenge = load_facts(trial), load_task(config.task).challenge
    if challenge is None:
        raise UserError(f"{trial.path}: no challenge's platform takes what the task {config.task} predicts")
    says = PLATFORMS[challenge].says(trial, config, facts.targets)
    return Member(trial, config, challenge, says, facts, load_model(config, trial, backbone))


def _shared_backbone(trials: Sequence[Path], configs: Sequence[Config], with_backbone: bool) -> Backbone:
    """The backbone of all trials. Raises UserError if they have not one, or if it can only travel in the folder."""
    first = configs[0].backbone
    for trial, config in zip(trials, configs, strict=True):
        if config.backbone != first or any(of(config) != of(configs[0]) for of in (_correction, _decoding)):
            raise UserError(
                f"{trial} is trained on another backbone than {trials[0]}, or on images decoded or corrected otherwise: an "
                "exported ensemble shares both"
            )
    is_public = all(weights.repository or weights.tag for weights in first.weights_from())  # its name leads to them anywhere
    if not with_backbone and not is_public and not _brings_networks(configs):
        raise UserError(f"the platform cannot fetch the backbone ({first}): it is here alone; add --with-backbone")
    return load_backbone(first)


def _check_alike(members: Sequence[Member]) -> None:
    """UserError unless all say the same things; classes in one order, for their first is the positive one."""
    first = members[0]
    for member in members:
        if member.says != first.says:
            what = [f"{each.trial.path} predicts {', '.join(each.facts.targets)}" for each in (member, first)]
            raise UserError(f"{what[0]}, and {what[1]}: an exported ensemble says one thing")


def _correction(config: Config) -> Spec:
    """What is done to an image before the backbone's transform."""
    return {"colour_card": config.data.colour_card, "scale_bar": config.data.scale_bar, "canvas": config.data.canvas}


def _decoding(config: Config, backbone: Backbone | None = None) -> Spec:
    """How an image is decoded before that, as `decoding.How` takes it, for a backbone."""
    keeps_size, decode = config.data.scale_bar, config.extract.decode
    enough = backbone.enough(decode) if backbone else int(decode == "fast")
    return config.data.decoding.model_dump(mode="json") | {"keeps_size": keeps_size, "enough": enough}


def _brings_networks(configs: Iterable[Config]) -> bool:
    """Whether every member is a whole network of its own, trained end to end: none reads the backbone's weights."""
    return all(config.model.encoder.reads == "images" for config in configs)


# ---------------------------------------------------------------- the folder
def _write(folder: Path, members: Sequence[Member], backbone: Backbone, with_backbone: bool, calibration: Spec | None) -> None:
    """All files of the submission."""
    states = _with_same_tails(members, [_state(member) for member in members], backbone)
    first, challenge = members[0], members[0].challenge
    here = Path(__file__).parent
    shutil.copyfile(here / f"{challenge}.py", folder / "model.py")
    package = [Path(str(module.__file__)) for module in (decoding, correction, plain)]
    for file in (here / "network.py", here / "towers.py", here / "seal.py", *package):
        shutil.copyfile(file, folder / file.name)
    base = backbone.native() if with_backbone else {}
    weights = None if _brings_networks(member.config for member in members) else fingerprint(backbone.native())
    torch.save({"backbone": base, "members": states}, folder / "weights.pt")
    spec = {
        "challenge": challenge,
        "decoding": _decoding(first.config, backbone),
        "correction": _correction(first.config),
        "backbone": backbone.write_spec(first.config.backbone, folder, "architecture") | {"fingerprint": weights},
        "members": [_member_spec(member) for member in members],
    }
    own = PLATFORMS[challenge].spec([member.trial for member in members], first.says, calibration)
    write_text(folder / "requirements.txt", _requirements(members))
    seal(folder, spec | own)


def _requirements(members: Iterable[Member]) -> str:
    """What model.py imports: what reads backbone and trees in the version that is here, the rest as the platform has it.

    Without a newline at the end: a blank line would end the platform's run.
    """
    networks = [network for member in members for network in member.config.backbone.networks]
    named = {name for network in networks for name in network.libraries}
    lines = {"torchvision"} if named else set()
    named |= {name for member in members for name in member.config.model.head.libraries}
    lines |= {f"{name}=={version(name)}" for name in named}
    return "\n".join(["torch", "numpy", "Pillow", *sorted(lines)])


# ---------------------------------------------------------------- tensors
def _state(member: Member) -> State:
    """A member's tensors: its own under the names of `network.py`, its tail after `tail.` under those of its library."""
    tail = _tail(getattr(member.model, "encoder", None))
    own = {name: t for name, t in member.model.plain_state().items() if not (tail and name.startswith("encoder."))}
    return {name: tensor.cpu().clone() for name, tensor in (own | tail).items()}


def _tail(encoder: Any) -> State:
    """What an encoder has learnt of the backbone: some blocks, with adapters merged into them, or the whole network."""
    if hasattr(encoder, "peft_config"):
        encoder = encoder.merge_and_unload()
    if isinstance(encoder, Network):
        return {f"tail.{name}": tensor for name, tensor in encoder.backbone.native().items()}
    if isinstance(encoder, Tail):
        return {f"tail.{name.removeprefix('visual.')}": tensor for name, tensor in encoder.to_native().items()}
    return {}


def _with_same_tails(members: Sequence[Member], states: Sequence[State], backbone: Backbone) -> list[State]:
    """Where members have tails, all that look at images have the tensors of the longest one's, so that none reads another's."""
    names = {name for state in states for name in state if name.startswith("tail.")}
    native = backbone.native() if names else {}
    base = {name: native[name.removeprefix("tail.")] for name in names}
    return [base | state if m.model.reads_images else state for m, state in zip(members, states, strict=True)]


# ---------------------------------------------------------------- descriptions
def fingerprint(state: State) -> str:
    """As `network.py` has it, which this package cannot import: the weights that the platform fetches must be these."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _member_spec(member: Member) -> Spec:
    """How a member is made again, and what calibrates it."""
    names, trained, config = member.facts.names, read_trained(member.trial), member.config
    return member.model.spec() | {
        "stored": {"rounded": token_kind(config)[0] if config.features.dtype == "bf16" else None, "cut": member.facts.cut},
        "trial": f"{member.trial.path.parent.name}/{member.trial.path.name}",
        "config_hash": trained["config_hash"],
        "targets": list(member.facts.learnt),
        "names": {"domains": names.domains, "species": names.species, "genera": names.genera},
        "calibration": trained["calibration"],
    }
