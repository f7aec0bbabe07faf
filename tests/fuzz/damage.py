"""What disks and editors do to the files of a trained experiment, thrown at the commands that read them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from PIL import Image

from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.disk.layout import PROJECT
from pipeline.disk.lease import Lease
from pipeline.disk.writing import write_text
from pipeline.errors import Interrupted, UserError, WorkError
from pipeline.experiments.reading import dump_config, load_experiment
from pipeline.export.codabench import export
from pipeline.launch.jobs.trials import recorded_failure
from pipeline.launch.manifest.manifest import Terms, make_manifest
from pipeline.signals import StopFlag
from pipeline.stages import train
from pipeline.tasks import load_task
from tests.fuzz.values import VALUES, paths_in, spoil, spoil_bytes
from tests.fuzz.verdict import SECONDS, Case, Ended, at_most, command, refused_or_done

QUICK = ("device=cpu", "train.precision=fp32", "features.dtype=fp32", "resources.lease_seconds=1", "resources.decode_threads=1")
SECONDS_OF_CHECK = 60
"""The protocol of a platform, in processes of its own."""
IMAGES = (".png", ".jpg")
KEPT = (*IMAGES, ".log", ".out")
"""What no command reads as a structure."""
RECORDS = (".json", ".parquet", "")
"""Endings of what commands read as one; a lease has none."""
STEMS = {"beetles-pixels": "beetles/pixels", "beetles-lora": "beetles/lora", "butterflies-logistic": "butterflies/logistic"}
"""What the YAML of an experiment is called."""
MARK = "\ufffd"
RAW = (
    "1e999", "-1e999", "9" * 401, "1e308", "true", "null", "[" * 100_000 + "]" * 100_000, '["x"]', '"nan"', '"a\\u0000b"', "5",
    "0", "-1", "{}", "[]", "[[1, 2.0]]", '"' + "a" * 300 + '"', '"../.."',
)  # fmt: skip
"""Values of JSON as text, which nothing that writes it would write."""


@dataclass(frozen=True)
class Trained:
    """A root in which experiments were trained, and how each was asked for."""

    root: Path
    requests: dict[str, tuple[str, ...]]

    def submissions(self, root: Path) -> list[Path]:
        """What was exported: of beetles an ensemble and an adapter with its backbone, of butterflies a classifier as a zip."""
        return [root / "submissions" / name for name in ("ensemble", "lora", "logistic.zip")]

    def trials(self, root: Path) -> list[Path]:
        return sorted(path.parent for path in root.glob("trained/*/*/trained.json"))

    def ensembles(self, root: Path) -> list[Path]:
        return sorted(root.glob("trained/*/ensembles/*"))


def trained(place: Path) -> Trained:
    """A network of two seeds with an ensemble, an adapter and a classifier, each through every stage; they may be there."""
    root = place / "root"
    beetles = (f"data.source={root / 'beetles'}", *QUICK)
    clip = ("backbone.kind=open_clip", f"backbone.name=local-dir:{root / 'clip'}")
    pixels = ("backbone.kind=pixels", "backbone.size=4")
    requests = {
        "beetles-pixels": (str(PROJECT / "configs/beetles/pixels.yaml"), *beetles, "seed=0,1"),
        "beetles-lora": (str(PROJECT / "configs/beetles/lora.yaml"), *beetles, *clip, "train.epochs=1"),
        "butterflies-logistic": (
            str(PROJECT / "configs/butterflies/logistic.yaml"), f"data.source={root / 'butterflies'}", *QUICK, *pixels,
        ),
    }  # fmt: skip
    if not root.exists():
        with rooted(root):
            _train(root, requests)
    return Trained(root, requests)


def _train(root: Path, requests: dict[str, tuple[str, ...]]) -> None:
    load_task("beetles").generate(root / "beetles", scale=0.02, form="csv")
    load_task("butterflies").generate(root / "butterflies", scale=0.02)
    write_tiny_open_clip(root / "clip")
    for request in requests.values():
        for stage in ("extract", "train", "evaluate", "collect"):
            ended = command(stage, *request)
            assert ended.status == 0, (stage, request, ended)
    leave_unfinished(requests["beetles-pixels"])
    (ensemble,) = root.glob("trained/beetles-pixels/ensembles/*")
    (lora,), (logistic,) = (root.glob(f"trained/{name}/*/trained.json") for name in ("beetles-lora", "butterflies-logistic"))
    for name, source in (("ensemble", ensemble), ("lora", lora.parent), ("logistic", logistic.parent)):
        export([source], root / "submissions" / name, zipped=name == "logistic", with_backbone=True)


def unfinished(request: tuple[str, ...]) -> tuple[str, ...]:
    """Asks for two other trials, of a head that is trained in epochs."""
    kept = (text for text in request if not text.startswith(("seed=", "train.epochs=")))
    return (*kept, "seed=7,8", "model.head.kind=mlp", "train.epochs=3")


def leave_unfinished(request: tuple[str, ...]) -> None:
    """Beside what is done: a trial that failed and whose lease is there, one that was interrupted and has a checkpoint, and the
    record of a submission, with one of before that a person has kept."""
    experiment = load_experiment(request[0], unfinished(request)[1:])
    record = make_manifest(experiment, experiment.trials, Terms(argv=("carabid", "submit"))).path
    shutil.copy(record, record.with_name("1 (copy).json"))
    failed, stopped = experiment.trials
    with contextlib.suppress(UserError), recorded_failure(experiment.dir.trial(failed.name), "train"):
        write_text(experiment.dir.trial(failed.name).config, dump_config(failed.config))
        raise UserError("table.csv, line 3: made to fail")
    with Lease(experiment.dir.trial(failed.name).lease, 1).hold():
        pass
    with contextlib.suppress(Interrupted), StopFlag().installed() as flag:
        signal.raise_signal(signal.SIGTERM)
        train.run(stopped.config, experiment.dir.trial(stopped.name), flag)
    assert experiment.dir.trial(stopped.name).resume_state.exists()


def rooted(root: Path) -> Any:
    return mock.patch.dict(os.environ, {"CARABID_ROOT": str(root)})


def damage_case(number: int, draw: random.Random, place: Path) -> Case:
    """One file spoilt, and every command that may read it."""
    whole = trained(place)
    root = place / "spoilt"
    shutil.rmtree(root, ignore_errors=True)
    copy_of(whole.root, root)
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in KEPT and "code" not in path.parts]
    records = [path for path in files if path.suffix in RECORDS and "trained" in path.parts]
    path = draw.choice(records if draw.random() < 0.7 else files)
    spoil_file(path, draw)
    near, rest = by_nearness(path, every_command(whole, root, place))
    chosen = draw.sample(near, min(4, len(near))) + draw.sample(rest, 2) + checks_of(path, whole.submissions(root))
    return Case(f"damage {number} ({path.relative_to(root)})", lambda: run(chosen, root), is_one=False)


def copy_of(whole: Path, root: Path) -> None:
    """All of it; but what no case spoils and no command writes, images and the copies of the code, is linked."""
    shutil.copytree(whole, root, symlinks=True, ignore=shutil.ignore_patterns("code"), copy_function=_copy)
    for code in whole.rglob("code"):
        (root / code.relative_to(whole)).symlink_to(code)


def _copy(source: str, target: str) -> None:
    (os.link if source.endswith(IMAGES) else shutil.copy2)(source, target)


def spoil_file(path: Path, draw: random.Random) -> None:
    """Gone, a folder, other bytes, or (JSON) another value at one of its places."""
    how, content = draw.random(), json_in(path)
    if how < 0.05:
        path.unlink()
    elif how < 0.08:
        path.unlink()
        path.mkdir()
    elif content is not None and how < 0.85:
        path.write_text(spoil_json(content, draw))
    elif content is not None and how < 0.88:
        path.write_text(draw.choice(("[" * 100_000, '{"a":' * 100_000, "NaN", "null", '"x"', "1e999", "{}", "[]")))
    else:
        path.write_bytes(spoil_bytes(path.read_bytes(), draw))


def json_in(path: Path) -> Any:
    """What a file holds as JSON, whatever it is called (a lease has no ending); None if it holds none."""
    with contextlib.suppress(ValueError):
        return json.loads(path.read_bytes())
    return None


def spoil_json(content: Any, draw: random.Random) -> str:
    """JSON with another value at one place, in lists too; or with a key that is gone, or called otherwise."""
    if draw.random() < 0.3 and isinstance(content, dict) and paths_in(content):
        spoil(content, draw)
        return json.dumps(content, default=str)
    tree: list[Any] = [content]
    block, key = draw.choice(list(places_in(tree)))
    block[key] = MARK
    value = draw.choice(RAW) if draw.random() < 0.5 else json.dumps(draw.choice(VALUES), default=str, skipkeys=True)
    return json.dumps(tree[0]).replace(json.dumps(MARK), value)


def places_in(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in blocks and lists: what it is in, and its key there."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, dict | list):
            yield from places_in(value)


Action = tuple[tuple[str, ...], Callable[[], Ended]]
"""A command's arguments, and what runs it."""


def by_nearness(spoilt: Path, actions: list[Action]) -> tuple[list[Callable[[], Ended]], list[Callable[[], Ended]]]:
    """Commands that may read a spoilt file: those of its experiment, and of all; and the others."""
    parts = spoilt.parts
    experiment = parts[parts.index("trained") + 1] if "trained" in parts else ""
    near: list[Callable[[], Ended]] = []
    rest: list[Callable[[], Ended]] = []
    for line, act in actions:
        is_of_all = line[0] == "results" or not experiment
        (near if is_of_all or any(experiment in text or STEMS[experiment] in text for text in line) else rest).append(act)
    return near, rest or near


def every_command(whole: Trained, root: Path, place: Path) -> list[Action]:
    """The commands that read what is trained."""
    requests = [unfinished(whole.requests["beetles-pixels"]), *whole.requests.values()]
    requests = [tuple(text.replace(str(whole.root), str(root)) for text in request) for request in requests]
    image = place / "image.png"
    Image.new("RGB", (40, 30), (200, 120, 30)).save(image)
    costs = [("results", "--cost", "--format", form) for form in ("table", "json", "csv")]
    lines = [("results",), ("results", "--format", "json"), ("results", "--format", "csv"), *costs]
    lines += [(name, experiment) for experiment in whole.requests for name in ("status", "compare", "logs")]
    lines += [("compare", experiment, "--format", "json") for experiment in whole.requests]
    lines += [(stage, *request) for request in requests for stage in ("plan", "train", "evaluate", "collect")]
    told = [("predict", str(trial), str(image)) for trial in whole.trials(whole.root)]
    told += [("predict", str(folder), str(image), str(image), "--group") for folder in whole.ensembles(whole.root)]
    actions: list[Action] = [(line, partial(within, SECONDS, partial(command, *line))) for line in lines]
    actions += [(line, partial(within, SECONDS, partial(as_before, line, whole.root, root))) for line in told]
    out = place / "exported"
    sources = [*whole.ensembles(whole.root), *(t for t in whole.trials(whole.root) if t.parent.name == "butterflies-logistic")]
    for line in (("export", str(source), "--with-backbone", "--out", str(out)) for source in sources):
        actions.append((line, partial(within, SECONDS, partial(sealed_as_before, line, whole.root, root, out))))
    return actions


def checks_of(spoilt: Path, submissions: list[Path]) -> list[Callable[[], Ended]]:
    """The check of the submission that a spoilt file is of."""
    lines = [("export", "--check", str(path), "--largest", "2") for path in submissions if path in (spoilt, *spoilt.parents)]
    return [partial(within, SECONDS_OF_CHECK, partial(command, *line)) for line in lines]


def within(seconds: float, act: Callable[[], Ended]) -> Ended:
    """How a command ended, which may not take longer."""
    with at_most(seconds):
        return act()


def as_before(line: tuple[str, ...], before: Path, root: Path) -> Ended:
    """A prediction that is refused, or the one of the undamaged model."""
    ended = command(*(text.replace(str(before), str(root)) for text in line))
    assert ended.status or ended.out == predicted(line), f"another prediction, silently: {ended.out}"
    return ended


def sealed_as_before(line: tuple[str, ...], before: Path, root: Path, out: Path) -> Ended:
    """An export that is refused, or the one of the undamaged model."""
    shutil.rmtree(out, ignore_errors=True)
    ended = command(*(text.replace(str(before), str(root)) for text in line))
    found = None if ended.status else told_in(out)
    assert ended.status or found == exported(line, out), f"another submission, silently: {found}"
    return ended


@cache
def exported(line: tuple[str, ...], out: Path) -> dict[str, Any]:
    """What the submission of the undamaged model says."""
    shutil.rmtree(out, ignore_errors=True)
    ended = command(*line)
    assert ended.status == 0, ended
    return told_in(out)


def told_in(submission: Path) -> dict[str, Any]:
    """What submission.json says beside hashes."""
    content: dict[str, Any] = json.loads((submission / "submission.json").read_text())
    return {key: value for key, value in content.items() if key not in ("sha256", "content")}


@cache
def predicted(line: tuple[str, ...]) -> str:
    """What the undamaged model says."""
    ended = command(*line)
    assert ended.status == 0, ended
    return ended.out


def run(actions: list[Callable[[], Ended]], root: Path) -> None:
    with rooted(root):
        for act in actions:
            with contextlib.suppress(WorkError):
                refused_or_done(act())
