"""What became of an experiment's trials: folders, Slurm's queue, its accounting, records and logs, joined. Loads no torch.

One squeue for all trials, and one sacct for those that have neither results nor a job.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.errors import WorkError
from pipeline.experiment import Trial
from pipeline.launch.accounting import Outcome, outcomes
from pipeline.launch.failures import Failure, classify
from pipeline.launch.manifest import Manifest
from pipeline.launch.pack import log_path
from pipeline.launch.parts import Part, Parts, chunk_names, job_names
from pipeline.launch.queue import Queued, Task, my_tasks, queued_trials
from pipeline.layout import ExperimentDir, read_json
from pipeline.state import TrialState

LOG_END = 64_000
"""Bytes of a log that are looked at for why its job ended."""
Attempt = tuple[Part, Outcome]


@dataclass(frozen=True)
class View:
    """A trial as it is shown: its state with the reason, and how it failed, at which stage, if it did."""

    name: str
    state: TrialState
    stage: str = ""
    failure: Failure | None = None


class History:
    """What is known of one experiment's jobs; read when it is first asked for."""

    def __init__(self, experiment: ExperimentDir) -> None:
        self.experiment = experiment
        self.parts = Parts(experiment)

    @cached_property
    def tasks(self) -> list[Task]:
        """What Slurm has queued, to be shown: nothing, and a word on stderr, where it does not answer."""
        try:
            return my_tasks()
        except WorkError as error:
            print(f"carabid: what is queued is not known: {str(error).splitlines()[0]}", file=sys.stderr)
            return []

    @cached_property
    def queued(self) -> dict[str, Queued]:
        """What Slurm has queued, by trial."""
        return queued_trials(self.parts, self.tasks)

    @cached_property
    def submissions(self) -> list[Manifest]:
        """Every submission that can be read, oldest first."""
        return sorted(self._read(), key=lambda manifest: manifest.written)

    @cached_property
    def last(self) -> dict[str, tuple[Manifest, int]]:
        """Trial → the last submission that names it, and its index there."""
        return {entry.name: (m, index) for m in self.submissions for index, entry in enumerate(m.entries)}

    @cached_property
    def attempts(self) -> dict[tuple[str, str], Attempt]:
        """(Trial, stage) → the last job or task that did it, and what became of that by Slurm's accounting.

        (Accounting knows nothing of a task that is stuck; the queue does.)
        """
        found: dict[tuple[str, str], Attempt] = {}
        stuck = [Outcome(t.id, t.name, t.state, 0, 0, 0, 0, 0, "", t.reason) for t in self.tasks if t.stuck]
        for outcome in sorted([*self._outcomes(), *stuck], key=lambda outcome: int(outcome.job.partition("_")[0])):
            array, _, index = outcome.job.partition("_")
            if part := self.parts.of(outcome.name, array, int(index) if index else None):
                found |= {(entry.name, part.stage): (part, outcome) for entry in part.entries()}
        return found

    def view(self, name: str, state: TrialState, trial: Trial | None = None) -> View:
        """A trial whose folder is in this state, with what queue, accounting and logs say of it.

        With `trial`, a job that evaluates it in another way than asked for does not count.
        """
        job = self.queued.get(name)
        if state.state != "done" and job and (trial is None or job.will_do(trial)):
            return View(name, _queued_state(job), job.stage)
        if state.state in ("done", "running") or (state.state in ("missing", "stale") and name not in self.last):
            return View(name, state)
        stage, failure = self.failure(name)
        if failure is None:
            return View(name, state)
        return View(name, TrialState("failed", f"{failure.kind}: {stage}: {failure.what}"), stage, failure)

    def failure(self, name: str) -> tuple[str, Failure | None]:
        """At which stage a trial's last attempt failed, and how; what failed because of an earlier stage is that one's."""
        record = _record(self.experiment.trial(name).failure)
        stage = record["stage"] if record else "evaluate" if self.experiment.trial(name).trained.exists() else "train"
        failure = self._classify(name, stage, record)
        if stage == "train" and (failure is None or failure.kind == "dependency"):
            return next(
                (("extract", found) for found in [self._classify(name, "extract", None)] if found), (stage, failure)
            )
        return stage, failure

    def log(self, name: str, stage: str) -> Path | None:
        """The log of a stage's last attempt at a trial; None if there is none, or it is not ours to know (typed by hand)."""
        if name not in self.last:
            return None
        manifest, index = self.last[name]
        found = sorted(_logs(manifest, index, stage), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def _classify(self, name: str, stage: str, record: Mapping[str, Any] | None) -> Failure | None:
        _, outcome = self.attempts.get((name, stage), (None, None))
        log = self.log(name, stage)
        return classify(record, outcome, _end(log) if log else "")

    def _read(self) -> Iterator[Manifest]:
        for path in self.experiment.submissions.glob("*.json"):
            if manifest := self.parts.manifest(path.stem):
                yield manifest

    def _outcomes(self) -> list[Outcome]:
        submitted = [m for m in self.submissions if m.number.isdecimal() and m.terms.profile.scheduler == "slurm"]
        typed = [m.number.removeprefix("job-") for m in self.submissions if not m.number.isdecimal()]
        names = [name for m in submitted for name in job_names(m)] + [f"carabid-evaluate-{job}" for job in typed]
        return (outcomes(names, self.submissions[0].written, typed) or []) if names else []


def _queued_state(job: Queued) -> TrialState:
    return TrialState("running" if job.state == "running" else "queued", f"{job.stage}: job {job.job}, {job.state}")


def _logs(manifest: Manifest, index: int, stage: str) -> Iterator[Path]:
    """What there is of logs of one trial's stage, of all its attempts."""
    if (stage == "train" and manifest.terms.pack > 1) or manifest.terms.profile.scheduler == "local":
        yield from (path for path in [_plain_log(manifest, index, stage)] if path.exists())
        return
    if stage == "extract":
        features = manifest.entries[index].features
        tasks = [task for task, (number, *_) in enumerate(manifest.extractions) if number == features]
    else:
        tasks = [index // manifest.terms.pack]
    n = len(manifest.extractions) if stage == "extract" else len(manifest.tasks)
    names = chunk_names(stage, n, manifest.array_size)
    for task in tasks:
        chunk, place = divmod(task, manifest.array_size)
        folder = manifest.experiment.stage_logs(manifest.number, names[chunk])
        alone = min(n - chunk * manifest.array_size, manifest.array_size) == 1
        yield from folder.glob("[0-9]*_0_log.out" if alone else f"[0-9]*_{place}_0_log.out")


def _plain_log(manifest: Manifest, index: int, stage: str) -> Path:
    if stage == "train":
        return log_path(manifest, index)
    task = next(t for t, (number, *_) in enumerate(manifest.extractions) if number == manifest.entries[index].features)
    return manifest.experiment.stage_logs(manifest.number, stage) / f"{task if stage == 'extract' else index}.log"


def _record(path: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"stage", "message"} <= record.keys() else None


def _end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        return file.read().decode(errors="replace")
