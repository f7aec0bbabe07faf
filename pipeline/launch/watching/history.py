"""What became of an experiment's trials: folders, Slurm's queue, its accounting, records and logs, joined. Loads no torch.

One squeue for all trials, and one sacct for those that have neither results nor a job.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import read_record
from pipeline.errors import WorkError
from pipeline.experiments.reading import Trial
from pipeline.launch.manifest.job_names import Part, Parts, chunk_names, job_names
from pipeline.launch.manifest.manifest import TYPED, Manifest
from pipeline.launch.scheduler.accounting import Outcome, outcomes
from pipeline.launch.scheduler.queue import JobTask, Queued, my_job_tasks, queued_trials
from pipeline.launch.watching.failures import Failure, classify
from pipeline.reporting.state import TrialState

LOG_END = 64_000
"""Bytes of a log that are looked at for why its job ended."""


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
        self._listed: dict[str, dict[tuple[str, str], list[Path]]] = {}

    @cached_property
    def job_tasks(self) -> list[JobTask]:
        """What Slurm has queued, to be shown: nothing, and a word on stderr, where it does not answer."""
        try:
            return my_job_tasks()
        except WorkError as error:
            print(f"carabid: what is queued is not known: {str(error).splitlines()[0]}", file=sys.stderr)
            return []

    @cached_property
    def queued(self) -> dict[str, Queued]:
        """What Slurm has queued, by trial."""
        return queued_trials(self.parts, self.job_tasks)

    @cached_property
    def submissions(self) -> list[Manifest]:
        """Every submission that can be read, oldest first."""
        read = [m for path in self.experiment.submission_records() if (m := self.parts.manifest(path.stem))]
        return sorted(read, key=lambda m: (m.written, int(m.number.removeprefix(TYPED))))

    @cached_property
    def last(self) -> dict[str, tuple[Manifest, int]]:
        """Trial → the last submission that names it, and its index there."""
        return {entry.name: (m, index) for m in self.submissions for index, entry in enumerate(m.entries)}

    @cached_property
    def attempts(self) -> dict[tuple[str, str], tuple[Part, Outcome]]:
        """(Trial, stage) → the last job task that did it, and what became of that by Slurm's accounting.

        (Accounting knows nothing of a job task that is stuck; the queue does.)
        """
        found: dict[tuple[str, str], tuple[Part, Outcome]] = {}
        stuck = [Outcome(t.id, t.name, t.state, 0, 0, 0, "", t.reason) for t in self.job_tasks if t.stuck]
        for outcome in sorted([*self._outcomes(), *stuck], key=lambda outcome: int(outcome.job.partition("_")[0])):
            array, _, index = outcome.job.partition("_")
            if part := self.parts.of(outcome.name, array, int(index) if index else None):
                for key in ((entry.name, part.stage) for entry in part.entries()):
                    _, before = found.get(key, (None, None))
                    # Job tasks of one array share a trial (its features' extraction): one that did not end well counts.
                    if not before or before.job.partition("_")[0] != array or before.state == "COMPLETED":
                        found[key] = (part, outcome)
        return found

    def view(self, name: str, state: TrialState, trial: Trial | None = None) -> View:
        """A trial whose folder is in this state, with what queue, accounting and logs say of it.

        With `trial`, a job that evaluates it in another way than asked for does not count.
        """
        job = self.queued.get(name)
        if state.state != "done" and job and (trial is None or job.will_do(trial)):
            state = TrialState("running" if job.state == "running" else "queued", f"{job.stage}: job {job.job}, {job.state}")
            return View(name, state, job.stage)
        if state.state in ("done", "running") or (state.state in ("missing", "stale") and name not in self.last):
            return View(name, state)
        stage, failure = self.failure(name)
        if failure is None:
            return View(name, state)
        return View(name, TrialState("failed", f"{failure.kind}: {stage}: {failure.what}"), stage, failure)

    def failure(self, name: str) -> tuple[str, Failure | None]:
        """At which stage a trial's last attempt failed, and how; what failed because of an earlier stage is that one's."""
        trial = self.experiment.trial(name)
        found = read_record(trial.failure)
        record = found if all(isinstance(found.get(key), str) for key in ("stage", "message")) else None
        stage = record["stage"] if record else "evaluate" if trial.trained.exists() else "train"
        failure = self._classify(name, stage, record)
        may_be_older = stage == "train" and (failure is None or failure.kind == "dependency")
        of_extraction = self._classify(name, "extract", None) if may_be_older else None
        return ("extract", of_extraction) if of_extraction else (stage, failure)

    def log(self, name: str, stage: str) -> Path | None:
        """The log of a stage's last attempt at a trial; None if there is none, or it is not ours to know (typed by hand)."""
        if name not in self.last:
            return None
        manifest, index = self.last[name]
        own = _own_logs(manifest, index, stage)
        return next(iter(_latest(self._slurm_logs(manifest, index, stage) if own is None else own)), None)

    def _slurm_logs(self, manifest: Manifest, index: int, stage: str) -> list[Path]:
        """The logs of the job tasks that do a stage of a trial, of all their attempts."""
        if manifest.number not in self._listed:
            self._listed[manifest.number] = _list_logs(self.experiment, manifest.number)
        if not (listed := self._listed[manifest.number]):
            return []
        return [path for wanted in _folders_and_places(manifest, index, stage) for path in listed.get(wanted, [])]

    def _classify(self, name: str, stage: str, record: Mapping[str, Any] | None) -> Failure | None:
        _, outcome = self.attempts.get((name, stage), (None, None))
        return classify(record, outcome, "\n".join(map(_end, self._logs_of(name, stage, outcome))))

    def _logs_of(self, name: str, stage: str, outcome: Outcome | None) -> list[Path]:
        """What tells why an attempt ended: the log of its job task, and of a trial that shares a job task its own."""
        if name not in self.last:
            return []
        manifest, index = self.last[name]
        of_tasks, own = self._slurm_logs(manifest, index, stage), _own_logs(manifest, index, stage)
        meant = [path for path in of_tasks if outcome and path.name == f"{outcome.job}_0_log.out"]
        return [*(meant or _latest(of_tasks)), *(own or [])]

    def _outcomes(self) -> list[Outcome]:
        submitted = [m for m in self.submissions if m.number.isdecimal() and m.terms.profile.scheduler == "slurm"]
        typed = [m.number.removeprefix(TYPED) for m in self.submissions if m.number.startswith(TYPED)]
        names = [name for m in submitted for name in job_names(m)] + [f"carabid-evaluate-{job}" for job in typed]
        return (outcomes(names, self.submissions[0].written, typed) or []) if names else []


def _latest(paths: Iterable[Path]) -> list[Path]:
    """The one that was written last, if there is any."""
    return sorted(paths, key=lambda path: path.stat().st_mtime)[-1:]


def _list_logs(experiment: ExperimentDir, number: str) -> dict[tuple[str, str], list[Path]]:
    """The logs of a submission's job tasks by folder and place in the array ("" outside one)."""
    listed: dict[tuple[str, str], list[Path]] = {}
    for path in experiment.logs.glob(f"{number}-*/*_0_log.out"):
        if place := re.fullmatch(r"\d+(?:_(\d+))?_0_log\.out", path.name):
            listed.setdefault((path.parent.name, place[1] or ""), []).append(path)
    return listed


def _own_logs(manifest: Manifest, index: int, stage: str) -> list[Path] | None:
    """A trial's own log: of one that shares a job task, or ran on this machine. None: it is that of its job task."""
    local = manifest.terms.profile.scheduler == "local"
    packed = stage == "train" and len(manifest.job_tasks[manifest.job_task_of[index]]) > 1
    if not local and not packed:
        return None
    features = [number for number, *_ in manifest.extractions]
    place = features.index(manifest.entries[index].features) if stage == "extract" else index
    path = manifest.experiment.own_log(manifest.number, stage, place)
    return [path] if path.exists() else []


def _folders_and_places(manifest: Manifest, index: int, stage: str) -> Iterator[tuple[str, str]]:
    """Folder, and place in its array ("": a job without one), of each job task that does a stage of a trial."""
    job_tasks, n = [manifest.job_task_of[index]], len(manifest.job_tasks)
    if stage == "extract":
        features, n = manifest.entries[index].features, len(manifest.extractions)
        job_tasks = [i for i, (number, *_) in enumerate(manifest.extractions) if number == features]
    names = chunk_names(stage, n, manifest.array_size)
    for job_task in job_tasks:
        chunk, place = divmod(job_task, manifest.array_size)
        alone = min(n - chunk * manifest.array_size, manifest.array_size) == 1
        yield manifest.experiment.stage_logs(manifest.number, names[chunk]).name, "" if alone else str(place)


def _end(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_END))
        return file.read().decode(errors="replace")
