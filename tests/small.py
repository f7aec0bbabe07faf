"""What the tests of records and extraction share: forty generated beetles in a folder of their own, and processes that
extract and can be killed at a chosen point."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from pipeline.config.trial import Config
from pipeline.experiments.documents import Layer
from pipeline.experiments.reading import Experiment, load_experiment
from pipeline.synthetic.beetles import IMAGE_COLUMNS
from tests import forked

SHARDS = 5
"""Of 8 images each."""
SPLITS = {"train": 20, "validation": 10, "test": 10}


NAMED: dict[str, Any] = {
    "task": "beetles",
    "data": {
        "source": "imageomics/sentinel-beetles",
        "columns": {"image": "file_path", "id": "public_id"},
        "targets": ["SPEI_30d", "SPEI_1y", "SPEI_2y"],
    },
}
"""What a configuration must name, for tests that are of other things."""


def named(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with what is not in them of NAMED; no targets beside a label."""
    data = values.get("data", {})
    if not isinstance(data, dict):
        return {**NAMED, **values}
    columns = {**NAMED["data"]["columns"], **data.get("columns", {})}
    targets = () if data.get("label") else NAMED["data"]["targets"]
    return {**NAMED, **values, "data": {**NAMED["data"], "targets": targets, **data, "columns": columns}}


def load_named(source: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """`load_experiment` with NAMED below what the YAML says."""
    return load_experiment(source, overrides, Layer(NAMED))


def make_small(generated: Path, folder: Path) -> Path:
    """A folder with the first images of each split of generated beetles (form csv); returns its CSV."""
    with (generated / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for name, n in SPLITS.items() for row in [r for r in rows if r["split"] == name][:n]]
    folder.mkdir(parents=True)
    table = folder / "metadata.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, chosen[0])
        writer.writeheader()
        writer.writerows(chosen)
    for name in {row[column] for row in chosen for column in IMAGE_COLUMNS}:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(generated / name, folder / name)
    return table


def small_config(table: Path, clip: Path, root: Path, **sections: Any) -> Config:
    """A config on these data and a tiny open_clip backbone; `sections` are merged into it."""
    values: dict[str, Any] = {
        "experiment": "small",
        "data": {"source": str(table), "columns": {"group": "eventID", "domain": "domainID"}},
        "backbone": {"kind": "open_clip", "name": f"local-dir:{clip}"},
        "features": {"dtype": "fp32", "shard_size": 8},
        "device": "cpu",
        "resources": {"extract_batch": 4, "decode_threads": 2, "lease_seconds": 1.5},
        "paths": {"features": str(root)},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(named(values))


def image_files(table: Path, column: str = "file_path") -> list[Path]:
    """The images' files in the order of the table."""
    with table.open(newline="") as file:
        return [table.parent / row[column] for row in csv.DictReader(file)]


# ---------------------------------------------------------------- processes
def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process of its own that runs a module-level function; it starts fast, from a server that has torch loaded."""
    process = forked.process(function, *arguments, daemon=True)
    process.start()
    return process


def extract_and_log(config: Config, log: Path, how: str, kill: str | None = None, number: int = signal.SIGKILL) -> None:
    """Run `ensure` or `run`; `log` gets a line for each computed shard.

    The process sends itself `number` at batch n if `kill` is "batch n", else before a file with `kill` in its name is
    renamed to that name.
    """
    from pipeline.stages import extract

    def die_if(now: bool) -> None:
        if now:
            os.kill(os.getpid(), number)

    def replacing(source: Path, target: Path) -> None:
        die_if(kill is not None and kill in Path(target).name)
        replace(source, target)

    def counted(*arguments: Any) -> Any:
        die_if(kill == f"batch {next(batches)}")
        return features_of(*arguments)

    def logged(work: Any, shard: int, *rest: Any) -> Any:
        made = compute(work, shard, *rest)
        with log.open("a") as file:
            file.write(f"{shard}\n")
        return made

    batches = itertools.count(1)
    replace, features_of, compute = os.replace, extract.compute_features, extract._compute_shard
    for module, name, function in (
        (os, "replace", replacing),
        (extract, "compute_features", counted),
        (extract, "_compute_shard", logged),
    ):
        setattr(module, name, function)
    getattr(extract, how)(config)


@contextmanager
def small_disk(folder: Path, size: str = "100k") -> Iterator[bool]:
    """A disk of so many bytes at `folder`; false where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
