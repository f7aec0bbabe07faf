"""What of a trained trial is published: the files that `predict` needs, its figures and its card, and nothing of this machine.

Left out are what says something of single images (predictions, validation), what only this machine needs (checkpoints, logs,
courses, leases), hosts, jobs and command lines. Of folders and files their last names remain. The configuration is another one
then, and so is its hash: trained.json and results.json say that of the published one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.backbone import LOCAL
from pipeline.config.identity import digest, only_science
from pipeline.config.own import content
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT, TrialDir, root
from pipeline.disk.reading import reading
from pipeline.disk.secrets import hidden, hide
from pipeline.disk.writing import read_hashed, read_json
from pipeline.errors import UserError, WorkError
from pipeline.experiments.documents import YamlDumper
from pipeline.models.content import hash_files, read_record
from pipeline.reporting.cards import UNKNOWN, Told, is_on_hub, model_card
from pipeline.stages.predict import trained_config, trial_at

NOT_PUBLISHED = "not published: "
"""What stands before the name of data that lie on this machine."""
OF_MACHINE = ("resources", "launch", "paths", "tracking")
"""Blocks of a configuration that say where and with what it was trained."""
ORIGIN = (
    "written", "carabid", "python", "packages", "device", "peak_memory_gib", "seconds", "gpu_hours", "restarts",
    "training_seconds", "resumed", "weights",
)  # fmt: skip
"""What of provenance is published; of the code its commit."""
PATH = re.compile(r"(?<![\w/:.~-])~?(?:/[^\s/:'\"`,;()\[\]]+)+/?")
"""A path in a text: what begins with a slash, and is no part of an address."""
PREFIXES = (LOCAL, "file://", "source:")
"""What may stand before a path."""
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
EVALUATE = "`carabid evaluate` with its configuration makes the results"


@dataclass(frozen=True)
class Release:
    """What is uploaded."""

    repository: str
    """`owner/name`."""
    files: Mapping[str, Path | bytes]
    """By the path in the repository: a file of the trial as it stands, or what is written for it."""
    notes: tuple[str, ...]
    """What a person is to know before it is uploaded."""

    @property
    def card(self) -> str:
        written = self.files["README.md"]
        assert isinstance(written, bytes)
        return written.decode()

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each file with its bytes."""
        for name, what in self.files.items():
            yield name, len(what) if isinstance(what, bytes) else what.stat().st_size


def prepare(folder: Path, repository: str, license: str = UNKNOWN) -> Release:
    """What of a trial is published as `repository`. Asks no network.

    Raises UserError for a folder that is no trial and a licence that is no name of the Hub's, WorkError for a trial that is not
    trained or not evaluated, whose files are damaged, or of which something that would be public is a secret or a place of this
    machine.
    """
    if not LICENSE.fullmatch(license):
        raise UserError(f"--license {license}: write it as the Hub does, such as cc-by-4.0, mit or other")
    trial = trial_at(folder)
    config, results = trained_config(trial), _results(trial)  # which checks the model's files
    record, hashes = read_record(trial)
    if results.get("config_hash") != record["config_hash"]:
        raise WorkError(f"{trial.results} is of another model than the one beside it: {EVALUATE} again")
    values = _cleaned_config(config)
    record = _cleaned_record(trial, record, hashes or hash_files(trial), values)
    with reading(trial.results, f"{EVALUATE} again"):
        told = Told(trial, config, record, _cleaned_results(results, values), repository, license)
        written = _written(told, values)
    for name, text in written.items():
        _check(name, text)
    models: dict[str, Path | bytes] = {name: trial.path / name for name in record["content"]}
    files = {**{name: text.encode() for name, text in written.items()}, **models}
    return Release(repository, dict(sorted(files.items())), tuple(_notes(told)))


def _written(told: Told, config: dict[str, Any]) -> dict[str, str]:
    """What is written for the Hub, by its name there."""
    with reading(told.trial.provenance, f"{EVALUATE} again"):
        origin = {stage: _origin(of) for stage, of in read_json(told.trial.provenance).items()}
    return {
        "README.md": model_card(told),
        "config.yaml": yaml.dump(config, Dumper=YamlDumper, sort_keys=False),
        "provenance.json": _json(origin),
        "results.json": _json(told.results),
        "trained.json": _json({**told.record, "sha256": digest(told.record)}),
        **_own_task(told.config),
    }


def _results(trial: TrialDir) -> dict[str, Any]:
    if not trial.results.is_file() or not trial.provenance.is_file():
        raise WorkError(f"{trial.path} is not evaluated: {EVALUATE}, and a model is published with its figures")
    with reading(trial.results, f"{EVALUATE} again"):
        return dict(read_hashed(trial.results))


def _notes(told: Told) -> Iterator[str]:
    config = told.config
    if told.license == UNKNOWN:
        yield "its card says that the licence is unknown; --license cc-by-4.0, say, states one"
    if not told.bases and config.backbone.weights_from():
        yield "its backbone lies in a folder of this machine and is not uploaded: whoever loads this model needs it as well"
    if config.task.endswith(".py"):
        yield f"{Path(config.task).name}, the code of its task, is uploaded with it"


# ---------------------------------------------------------------- nothing of this machine
def _cleaned_config(config: Config) -> dict[str, Any]:
    """The configuration without places: of a path its last name remains."""
    values = {key: value for key, value in config.model_dump(mode="json").items() if key not in OF_MACHINE}
    source = config.data.source
    if not is_on_hub(source):
        values["data"] |= {"source": f"{NOT_PUBLISHED}{Path(source).name}"}
    values["data"] |= {"download": None} if "download" in values["data"] else {}
    return {**_cleaned(values), "device": "auto"}


def _cleaned_record(
    trial: TrialDir, record: Mapping[str, Any], hashes: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, Any]:
    """trained.json of the files that are published, as JSON gives it back."""
    of_model = {name: value for name, value in hashes.items() if name != trial.validation.name}
    found = {**record, "config_hash": digest(only_science(dict(config))), "content": of_model}
    return dict(hidden(json.loads(json.dumps(found | {"provenance": _origin(record["provenance"])}))))


def _cleaned_results(results: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    summary = {**results["summary"], "bad_images": []}
    summary["warnings"] = _cleaned(summary.get("warnings", []))
    return {**results, "summary": summary, "config_hash": digest(only_science(dict(config)))}


def _origin(told: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without command lines, hosts and jobs."""
    code = {key: told.get("code", {}).get(key) for key in ("commit", "dirty")}
    return {"code": code, **_cleaned({key: told[key] for key in ORIGIN if key in told})}


def _cleaned(value: Any) -> Any:
    """Texts in a JSON value without paths."""
    if isinstance(value, dict):
        return {key: _cleaned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return _without_paths(value) if isinstance(value, str) else value


def _without_paths(text: str) -> str:
    """A text that is a path whole, whatever is in it, becomes its last name; so do paths in a sentence."""
    prefix, bare = next(((each, text.removeprefix(each)) for each in PREFIXES if text.startswith(each)), ("", text))
    if (bare.startswith(("/", "~", "./", "../")) or WINDOWS.match(bare)) and not re.search(r"[:;,] ", bare):
        return prefix + re.split(r"[/\\]", bare.rstrip("/\\"))[-1]
    return PATH.sub(lambda found: Path(found[0]).name, text)


def _own_task(config: Config) -> dict[str, str]:
    """The file of a lab's own task, which the model cannot be read without; it is looked for beside config.yaml."""
    is_own = config.task.endswith(".py")
    return {Path(config.task).name: content(config.task).decode(errors="replace")} if is_own else {}


def _json(value: Any) -> str:
    return json.dumps(hidden(value), indent=1, allow_nan=False) + "\n"


def _check(name: str, text: str) -> None:
    """Raises WorkError where what would be public should not be."""
    places = {str(place) for place in (Path.home(), root(), PROJECT, Path.cwd()) if place != Path("/")}
    here = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, sorted(places)))})(?!\w)")
    for number, line in enumerate(text.splitlines(), 1):
        if hide(line) != line:
            raise WorkError(f"not published: {name}, line {number}, holds a token or a password: remove it, and revoke it")
        if found := here.search(line):
            raise WorkError(f"not published: {name}, line {number}, names a folder of this machine ({found[0]})")
