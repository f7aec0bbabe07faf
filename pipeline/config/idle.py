"""Keys that a trial may have and not read, since a YAML that it is based on, or another trial of its grid, has a use for them.
Where none of an experiment's trials has one, whoever set the key expects a difference that there is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

from pipeline.config.identity import flatten
from pipeline.errors import UserError


class Idle(NamedTuple):
    """A key, or a block of them with a dot behind, that is read only where `at` is so."""

    key: str
    at: str
    """A dotted key, or an attribute of a block."""
    of: tuple[Any, ...]
    """The values at which it is read; (): any but none, 0 and false."""
    does: str
    """What a trial does that reads it."""

    def is_read_by(self, config: Any) -> bool:
        value = attrgetter(self.at)(config)
        return value in self.of if self.of else bool(value)


_SOLVED = ("model.head.descends", (True,), "learns by gradient descent")
IDLE = (
    *(
        Idle(key, *_SOLVED)
        for key in ("optim.", "schedule.", "tracking.", "train.epochs", "train.samples", "train.batch_size", "train.patience")
    ),
    *(Idle(f"schedule.{key}", "schedule.kind", ("cosine",), "has a cosine (schedule.kind)") for key in ("hold", "floor")),
    Idle("train.max_images", "train.sample", ("groups",), "draws sets of images (train.sample=groups)"),
    Idle("augment.domain_dropout", "model.domain_embedding", (True,), "reads the domain (model.domain_embedding=true)"),
    Idle("augment.species_dropout", "model.species_embedding", (True,), "reads the species (model.species_embedding=true)"),
    Idle("augment.images.colour_probability", "augment.images.changes_colours", (), "has its colours changed"),
    Idle("augment.warmup", "augment.is_on", (), "augments anything"),
    Idle("data.draw", "data.shots", (), "trains on few images of each class (data.shots)"),
    Idle("data.canvas", "data.scale_bar", (), "brings images to one scale (data.scale_bar=true)"),
    Idle("data.not_in_tree", "data.tree", (), "reads a tree (data.tree)"),
    Idle("tracking.project", "tracking.kind", ("wandb", "trackio"), "is shown where there are projects (tracking.kind)"),
    Idle("tracking.online", "tracking.kind", ("wandb",), "is shown in W&B (tracking.kind=wandb)"),
)


def check_read(axes: Mapping[str, Iterable[Any]], configs: Sequence[Any], where: str) -> None:
    """Raises UserError for the first key of these axes, key → choices, blocks among them, that no trial reads."""
    keys = dict.fromkeys(inner for key, choices in axes.items() for choice in choices for inner in flatten({key: choice}))
    for key, idle in product(keys, IDLE):
        is_meant = f"{key}.".startswith(f"{idle.key.removesuffix('.')}.")
        if is_meant and not any(idle.is_read_by(config) for config in configs):
            raise UserError(f"{where}: `{key}` would change nothing, since no trial {idle.does}: leave it out")
