"""Which part of a submission a Slurm job does: told by its name, its index in the array, and the submission's manifest.

No list of job ids has to be kept right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.config.identity import digest
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.reading import Damaged
from pipeline.disk.writing import read_json
from pipeline.launch.manifest.manifest import Entry, Manifest, load_manifest

HAND_MADE = re.compile(r"carabid-evaluate-(\d+)")
"""Name of the evaluation that a job typed by hand has queued for itself (`evaluation.queue_evaluation`)."""


@dataclass(frozen=True)
class Part:
    """A stage for some of a submission's trials: what one job, or one job task, does."""

    manifest: Manifest
    stage: str
    indices: Sequence[int]
    """Of its trials in the manifest."""

    def entries(self) -> list[Entry]:
        return [self.manifest.entries[index] for index in self.indices]


def job_name(manifest: Manifest, stage: str) -> str:
    """Readable, and of no other submission: experiment, number, place, stage (and chunk, from the second on)."""
    return f"{_prefix(manifest.experiment)}{manifest.number}-{stage}"


def job_names(manifest: Manifest) -> list[str]:
    """The names of all jobs that a submission may have queued."""
    counts = {"extract": len(manifest.extractions), "train": len(manifest.job_tasks), "evaluate": len(manifest.job_tasks)}
    stages = [name for kind, n in counts.items() for name in chunk_names(kind, n, manifest.array_size)]
    return [job_name(manifest, stage) for stage in (*stages, "collect")]


def chunk_names(kind: str, n: int, size: int) -> list[str]:
    """Names of the stages that `n` job tasks come to where an array may have `size`: train, train-2, train-3, …"""
    return [kind, *(f"{kind}-{number}" for number in range(2, -(-n // size) + 1))]


def _prefix(experiment: ExperimentDir) -> str:
    """Job names' beginning. The place is in it: another root or clone has experiments of the same names and numbers."""
    return f"carabid-{experiment.path.name}-{digest(str(experiment.path))[:6]}-"


class Parts:
    """Jobs → parts of one experiment's submissions; each manifest is read once."""

    def __init__(self, experiment: ExperimentDir) -> None:
        self.experiment = experiment
        self._pattern = re.compile(rf"{re.escape(_prefix(experiment))}(\d+)-(extract|train|evaluate|collect)(?:-(\d+))?")
        self._manifests: dict[str, Manifest | None] = {}
        self._arrays: dict[str, list[int]] = {}

    def of(self, name: str, array: str, index: int | None) -> Part | None:
        """The part that this job does; None if it is not the experiment's, or its manifest is gone: it will do nothing."""
        if match := self._pattern.fullmatch(name):
            manifest = self.manifest(match[1])
            return self._submitted(manifest, match[2], int(match[3] or 1), index or 0) if manifest else None
        by_hand = HAND_MADE.fullmatch(name)
        job = by_hand[1] if by_hand else array
        manifest = self.manifest(f"job-{job}")
        return self._typed(manifest, job, "evaluate" if by_hand else "train", index) if manifest else None

    def manifest(self, number: str) -> Manifest | None:
        """A submission's manifest; None if it is gone or cannot be read."""
        if number not in self._manifests:
            self._manifests[number] = None
            with suppress(OSError, Damaged):
                self._manifests[number] = load_manifest(self.experiment.submission(number))
        return self._manifests[number]

    def _submitted(self, manifest: Manifest, stage: str, chunk: int, index: int) -> Part | None:
        job_task = (chunk - 1) * manifest.array_size + index
        n_job_tasks = {"extract": len(manifest.extractions), "collect": 1}.get(stage, len(manifest.job_tasks))
        if job_task >= n_job_tasks:
            return None
        if stage == "extract":
            features = manifest.extractions[job_task][0]
            return Part(manifest, stage, [i for i, e in enumerate(manifest.entries) if e.features == features])
        everything = range(len(manifest.entries))
        return Part(manifest, stage, everything if stage == "collect" else manifest.job_tasks[job_task])

    def _typed(self, manifest: Manifest, job: str, stage: str, index: int | None) -> Part:
        """A job typed by hand: the job tasks of its array share the trials out (`sharding.my_share`)."""
        if job not in self._arrays:
            self._arrays[job] = read_json(self.experiment.submission(f"job-{job}"))["array"]
        low, step, count = self._arrays[job]
        rank = 0 if index is None else (index - low) // step
        return Part(manifest, stage, range(len(manifest.entries))[rank::count])
