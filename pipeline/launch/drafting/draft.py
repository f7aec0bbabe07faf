"""The YAML of an experiment that is drafted from a table: each choice with the reason, and what one would change next. Loads no
torch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.backbone import Backbone
from pipeline.data.roles import leftovers
from pipeline.experiments.documents import YamlDumper
from pipeline.launch.drafting.look import FEWEST, FOLDS, Look

AT = 46
"""Where comments begin."""
COLUMNS = ("group", "domain", "species", "site", "date")
WHY = {
    "group": "images of one group are never parted: they are all but the same. `null`: each image is by itself",
    "domain": "figures are of domains that were trained on, and of new ones",
    "species": "the scientific name, where it is not what is predicted",
    "site": "where they were taken",
    "date": "when they were taken",
}


def name_of(path: Path) -> str:
    """The name that an experiment can have of a file: `Käfer 2024.csv` → `Kafer-2024`."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._") or "experiment"


def draft(look: Look, out: Path, backbone: Backbone, skip: bool, typed: str) -> str:
    """The text of the YAML; `typed` is the command that asked for it."""
    is_of_classes = look.roles.predicts_classes
    lines = [
        f"# Drafted by `{_one_line(typed)}`.",
        f"# It is yours: change what you like. `carabid plan {out.name}` says what it comes to.",
        _line("task", "classify" if is_of_classes else "regress", "names of classes" if is_of_classes else "numbers"),
        _line("experiment", name_of(out), "the name of its folder in trained/"),
        *_data(look, skip),
        "",
        "backbone:",
        *(_line(f"  {key}", value) for key, value in _block(backbone).items()),
        "model:",
        *(_of_classes() if is_of_classes else _of_numbers()),
        "",
        "# What one would change next, here or behind the command (`carabid submit … key=value`); a list of values is a grid:",
        *(f"#   {change:<{AT - 2}}{why}" for change, why in changes(look)),
    ]
    return "\n".join(lines) + "\n"


def _block(backbone: Backbone) -> dict[str, Any]:
    return {"kind": backbone.kind} | backbone.model_dump(mode="json", exclude_unset=True)


def _of_classes() -> Iterator[str]:
    yield _line("  head", {"kind": "logistic"}, "logistic regression on embeddings: no GPU is needed for it")
    yield _line("loss", {"kind": "cross_entropy"})
    yield _line("select", {"metric": "log_loss"}, "what the penalty is chosen by: probabilities; roc_auc: their order alone")


def _of_numbers() -> Iterator[str]:
    yield _line("  normalize", False, "embeddings as they are, whose length may tell something")
    yield _line("  head", {"kind": "ridge"}, "ridge regression on embeddings: no GPU is needed for it")
    yield _line("  standardize_targets", True, "targets of several units count alike")


def _data(look: Look, skip: bool) -> Iterator[str]:
    roles, place = look.roles, look.roles.place
    yield ""
    yield "data:"
    yield _line("  source", str(look.path), f"{look.n_rows} rows")
    if roles.address:
        folder = str(place.folder.resolve()) if place.folder else "images"
        yield _line("  images", folder, "there `carabid fetch` downloads them; a relative one is beside the table")
        yield _line("  download", {"url": roles.address, "md5": roles.checksum})
    elif place.folder is not None:
        yield _line("  images", str(place.folder.resolve()), "what the table's paths are relative to")
    yield "  columns:"
    yield _line("    image", place.column)
    yield _line("    id", place.column, "what names an image in predictions and errors")
    for key in COLUMNS:
        if column := roles.columns.get(key):
            yield _line(f"    {key}", column, f"{roles.said[column]}; {WHY[key]}")
    if genus := roles.columns.get("ranks"):
        yield _line("    ranks", [genus], roles.said[genus])
    yield from _truth(look)
    yield _line("  exif", "apply", "photographs as people see them; pixels as they are stored: ignore")
    if skip:
        yield _line("  on_bad_image", "skip", "go on without images that are not there, or cannot be read; or: error")
    yield from _split(look)
    if left := list(leftovers(roles)):
        yield "  # Columns that are not read:"
        yield from (f"  #   {_one_line(each)}" for each in left)


def _truth(look: Look) -> Iterator[str]:
    roles = look.roles
    if roles.predicts_classes:
        yield _line("  label", roles.label, roles.said[str(roles.label)].partition(": ")[2])
    else:
        yield _line("  targets", list(roles.targets), "; ".join(roles.said[name].partition(": ")[2] for name in roles.targets))


def _split(look: Look) -> Iterator[str]:
    if own := look.own_splits:
        told = ", ".join(f"{name} ({n})" for name, n in look.splits.items())
        other = {key: name for key, name in own.items() if key != name}
        yield _line("  split", {"kind": "source", **other}, f"the table's own: {told}")
        return
    whose = "groups" if "group" in look.roles.columns else "images"
    why = f"{whose} dealt to {look.folds}: one tests, one validates, the others train"
    by = {"by": [look.roles.by]} if look.roles.by else {}
    why += f"; all of one {look.roles.by} together" if look.roles.by else ""
    yield _line("  split", {"kind": "folds", "n": look.folds, **by}, why)


def changes(look: Look) -> Iterator[tuple[str, str]]:
    """What one would change next, as overrides, and why."""
    if not look.own_splits:
        yield f"data.split.fold={','.join(map(str, range(look.folds)))}", "every image is tested once"
        for key, kind in {"site": "sites", "domain": "domains"}.items():
            if (n := min(FOLDS, look.number(key))) >= FEWEST:
                yield f"'data.split={{kind: {kind}, n: {n}}}'", f"tested on {kind} that were never trained on"
    if look.roles.predicts_classes:
        yield "model.head.kind=logistic,svc,knn", "other classifiers beside it; lda, hist_gradient_boosting, mlp, …"
    else:
        yield "model.head.kind=mlp", "a network instead of ridge regression"
    yield "data.permute_targets=true", "a control: nothing is left to learn, so nothing may be found"
    yield "'backbone={kind: dinov2}'", "another backbone; {kind: pixels}: the plainest one, which each should beat"
    yield "data.on_bad_image=skip", "go on without images that cannot be read"


# ---------------------------------------------------------------- lines
def _line(key: str, value: Any, why: str = "") -> str:
    indent = len(key) - len(key.lstrip())
    text = f"{' ' * indent}{_flow(key.strip())}: {_flow(value)}"
    return f"{text:<{AT}}  # {_one_line(why)}" if why else text


def _flow(value: Any) -> str:
    """A value as it stands in a YAML, on one line."""
    text = yaml.dump([value], Dumper=YamlDumper, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def _one_line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def told(look: Look) -> Iterable[str]:
    """What was understood of each column, for a person to check."""
    width = max(map(len, look.roles.said))
    width = min(width, 30)
    return [f"  {_one_line(name):<{width}}  {_one_line(why)}" for name, why in look.roles.said.items()]
