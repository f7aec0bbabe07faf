"""`carabid submit`: find the trials without results, freeze them in a manifest, and queue or run the chain. Loads no torch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from pipeline.config.identity import towers_of
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.lease import Lease
from pipeline.errors import WorkError
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import Experiment, Trial
from pipeline.features.hashes import known_feature_key
from pipeline.features.store import is_complete
from pipeline.features.text_hashes import known_text_key
from pipeline.launch.manifest.job_names import Parts
from pipeline.launch.manifest.manifest import (
    REFUSED,
    Manifest,
    Terms,
    alike_together,
    make_manifest,
    preview_manifest,
    sharing_features,
)
from pipeline.launch.scheduler.queue import Queued, cancel_stuck, is_queued, max_array_size, my_job_tasks, queued_trials
from pipeline.launch.submitting import sbatch
from pipeline.launch.watching.forecast import job_task_sizes
from pipeline.launch.watching.history import History
from pipeline.launch.watching.plan import missing_trials, table_warnings

POLL_SECONDS = 10.0
LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Request:
    """How to submit, as the command line says it."""

    profile: Profile = field(default_factory=Profile)
    dry_run: bool = False
    wait: bool = False
    workers: int = 1
    max_parallel: int | None = None
    pack: int | None = None
    """Trials of a job task, one after another; None: as the forecast says."""
    argv: tuple[str, ...] = ()
    check: bool = True
    """Whether tables are looked at before anything is queued."""

    @property
    def local(self) -> bool:
        """Whether the stages run on this machine."""
        return self.profile.scheduler == "local"

    def terms(self, experiment: Experiment, trials: Sequence[Trial]) -> Terms:
        """What a manifest of these trials freezes of it; a worker on this machine is given one trial at a time."""
        if self.local:
            return Terms(self.profile, argv=self.argv)
        sizes = job_task_sizes(experiment, trials) if self.pack is None else ()
        pack = None if self.pack is None else min(self.pack, len(trials))
        return Terms(self.profile, max_array_size(), pack, sizes, self.max_parallel, self.argv)


def submit(experiment: Experiment, request: Request) -> None:
    """Queue what is missing and print the job ids, or run it here; say so if there is nothing to do."""
    if request.dry_run:
        if todo := _todo(experiment, request):
            check_tables(todo, request)
            show_scripts(experiment, todo, request)
        return
    with one_at_a_time(experiment.dir, request):
        todo = _todo(experiment, request)
        queued = queue_trials(experiment, todo, request) if todo else None
    if queued and request.wait:
        wait_until_done(experiment, *queued)


def one_at_a_time(directory: ExperimentDir, request: Request) -> AbstractContextManager[object]:
    """Of several submissions at once each looks when the one before has queued, or the same trials would be queued twice.

    On this machine the leases of the trials keep these apart, for as long as they run.
    """
    return nullcontext() if request.local else Lease(directory.submitting, LEASE_SECONDS).hold()


def queue_trials(experiment: Experiment, trials: list[Trial], request: Request) -> tuple[Manifest, str] | None:
    """Freeze these trials in a manifest and queue their chain, whose last job is returned; or run it here."""
    if not request.local and shutil.which("sbatch") is None:
        raise WorkError("there is no Slurm on this machine (no sbatch): --cluster local trains here, --dry-run shows the scripts")
    check_tables(trials, request)
    tell_idle_gpus(trials, request)
    extract, trials = needs_extraction(trials), alike_together(trials)
    sbatch.check_paths(preview_manifest(experiment, trials, Terms()))
    manifest = make_manifest(experiment, trials, request.terms(experiment, trials))
    print(f"{len(trials)} of {len(experiment.trials)} trials{_dealt(manifest)}, submission {manifest.path}", flush=True)
    if request.local:
        from pipeline.launch.submitting import local

        if not local.run([manifest], request.workers):
            raise WorkError(f"some trials did not finish; their logs are in {manifest.experiment.logs}")
        return None
    return manifest, _queue(manifest, extract)


def check_tables(trials: list[Trial], request: Request) -> None:
    """Say what is to be said of their tables. Raises UserError for one that no job could train on, before any has waited for
    it."""
    if request.check:
        for line in table_warnings(trials):
            print(line, flush=True)


def wait_until_done(experiment: Experiment, manifest: Manifest, last: str) -> None:
    """Return when the last job has ended. Raises WorkError if a trial has no results then."""
    print(f"waiting for job {last}; Ctrl-C ends the waiting, and not the jobs", flush=True)
    while is_queued(last):
        time.sleep(POLL_SECONDS)
    mine = set(manifest.names)
    if left := [trial.name for trial in missing_trials(experiment) if trial.name in mine]:
        where = f"see `carabid status` and {manifest.experiment.logs}"
        raise WorkError(f"{len(left)} of {len(mine)} trials have no results: {', '.join(left[:5])}; {where}")


def _todo(experiment: Experiment, request: Request) -> list[Trial]:
    """Trials without current results that no job is going to do; says what is left out, and if nothing remains."""
    queued = _queue_of(experiment, request)  # before the disk: what ends in between is seen there
    missing = missing_trials(experiment)
    todo = [trial for trial in missing if not (trial.name in queued and queued[trial.name].will_do(trial))]
    if n_queued := len(missing) - len(todo):
        print(f"{n_queued} trials are queued or running already (`carabid plan` shows their jobs)", flush=True)
    elif not todo:
        name = experiment.dir.path.name
        print(f"nothing to do: all {len(experiment.trials)} trials have results (`carabid results {name}`)")
    return todo


def _queue_of(experiment: Experiment, request: Request) -> dict[str, Queued]:
    """What jobs of earlier submissions will do. Raises WorkError where that cannot be seen, and would be queued again."""
    if request.local:
        return {}
    if request.dry_run:
        return History(experiment.dir).queued
    if stuck := cancel_stuck(experiment.dir):
        print(f"cancelled {', '.join(stuck)}: what they waited for has failed", flush=True)
    return queued_trials(Parts(experiment.dir), my_job_tasks())


def show_scripts(experiment: Experiment, todo: list[Trial], request: Request) -> None:
    """Print every script that would be queued. Nothing is written."""
    todo = alike_together(todo)
    tell_idle_gpus(todo, request)
    manifest = preview_manifest(experiment, todo, request.terms(experiment, todo))
    for stage, script in sbatch.scripts(manifest, sbatch.chain(manifest, needs_extraction(todo))):
        print(f"──── {stage}\n{script}")
    names = ", ".join(trial.name for trial in todo[:5]) + (f" and {len(todo) - 5} more" if len(todo) > 5 else "")
    print(f"dry run: {len(todo)} of {len(experiment.trials)} trials would be queued{_dealt(manifest)}: {names}")


def tell_idle_gpus(trials: Sequence[Trial], request: Request) -> None:
    """Say so where trials ask for GPUs that none of them computes on."""
    config = trials[0].config
    idle = ("train", "evaluate") if config.evaluate.inputs == "features" else ("train",)
    asking = [stage for stage in idle if config.job(stage).gpus_per_node]
    if asking and not request.local and all(trial.config.is_solved for trial in trials):
        said = " ".join(f"resources.{stage}.gpus_per_node=0" for stage in asking)
        print(f"these heads are solved on the CPU, and ask for a GPU, which would idle: {said}", flush=True)


def _dealt(manifest: Manifest) -> str:
    """How many job tasks train them, where some train several."""
    n = len(manifest.job_tasks)
    return "" if manifest.terms.profile.scheduler == "local" or n == len(manifest.entries) else f" in {n} job task{'s' * (n > 1)}"


def needs_extraction(trials: list[Trial]) -> bool:
    """Whether a submission of these trials begins with extraction: not where all their features are there."""
    known = {"image": known_feature_key, "text": known_text_key}
    needed = [(sharing[0].config, known[tower]) for sharing in sharing_features(trials) for tower in towers_of(sharing[0].config)]
    return not all((key := known_key(config)) and is_complete(config, key) for config, known_key in needed)


def _queue(manifest: Manifest, extract: bool) -> str:
    try:
        ids = sbatch.submit(manifest, sbatch.chain(manifest, extract))
    except BaseException:  # nothing is queued: no trial is planned, and the number is not used again
        manifest.path.rename(manifest.path.with_suffix(REFUSED))
        raise
    for stage, job in ids.items():
        print(f"{stage:<9} job {job}", flush=True)
    return ids["collect"]
