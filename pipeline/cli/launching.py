"""The commands that bring trials to Slurm or to this machine, watch them, and take them back."""

import sys
from contextlib import suppress
from typing import Annotated, Literal

import typer

from pipeline.cli.arguments import (
    ClusterOption,
    ConfigArgument,
    ExperimentName,
    ExperimentNames,
    Overrides,
    TrainedFolder,
    Wait,
    find_experiments,
    load,
    use_cluster,
)
from pipeline.errors import UserError, WorkError

BY_FORECAST = "as many as take about launch.task_minutes by the forecast"
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="Look at the tables of data first; each is read once.")]


def plan(config: ConfigArgument, overrides: Overrides = None, cluster: ClusterOption = None, check: CheckOption = True) -> None:
    """Show every trial, its state and the reason; nothing is run. Status 2 if a table cannot be trained on."""
    from pipeline.launch.watching.plan import lines

    for line in lines(load(config, overrides, use_cluster(cluster)), check):
        print(line)


def doctor(
    config: ConfigArgument,
    overrides: Overrides = None,
    cluster: ClusterOption = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Look at a node, by a small job.")] = True,
    patience: Annotated[float, typer.Option(min=1, help="Seconds that this job may wait for a free node.")] = 120,
) -> None:
    """Say what would fail on this cluster, before anything is queued. Status 1 if anything would."""
    from pipeline.launch.doctor import doctor as module
    from pipeline.launch.doctor.findings import Context

    site = use_cluster(cluster)
    experiment = load(config, overrides, site)
    failed = []
    for line in module.run(Context(experiment, site.profile, probe, patience)):
        print(line, flush=True)
        failed += [line.what] if line.verdict == "FAIL" else []
    if failed:
        raise WorkError(f"not ready: {', '.join(failed)}")


def submit(
    config: ConfigArgument,
    overrides: Overrides = None,
    cluster: ClusterOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every script, queue nothing.")] = False,
    wait: Wait = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at once with --cluster local.")] = 1,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Job tasks of each array at once; default: all.")] = None,
    pack: Annotated[str, typer.Option(help=f"Trials that a job task trains one after another, or auto: {BY_FORECAST}.")] = "auto",
    check: CheckOption = True,
) -> None:
    """Queue extraction, training, evaluation and collection of all trials that have no results yet."""
    from pipeline.launch.submitting import submit as launcher

    site = use_cluster(cluster)
    n = None if (said := _pack(pack)) == "auto" else said
    if site.profile.scheduler == "local" and n is not None:
        raise UserError("--pack is of Slurm's job tasks: on this machine --workers says how many trials train at once")
    request = launcher.Request(site.profile, dry_run, wait, workers, max_parallel, n, tuple(sys.argv), check)
    launcher.submit(load(config, overrides, site), request)


def status(
    experiments: ExperimentNames = None,
    trained: TrainedFolder = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it as a table, again and again.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks with --watch.")] = 15,
) -> None:
    """Show each trial's state: done, running, queued, failed (how, and what to do), …"""
    from pipeline.launch.watching import show
    from pipeline.reporting.results import no_trials

    found = find_experiments(experiments, trained)
    if watch:
        show.watch(found, every)
        return
    lines = list(show.status_lines(found))
    print("\n".join(lines) if lines else no_trials(trained))


def logs(
    experiment: ExperimentName,
    trial: Annotated[str, typer.Argument(help="Name of the trial, or a part of it that no other has.")],
    stage: Annotated[str | None, typer.Option(help="extract, train or evaluate; default: the last one.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is written, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 100,
    trained: TrainedFolder = None,
) -> None:
    """Print the log of a trial's last attempt."""
    from pipeline.launch.watching import show

    (directory,) = find_experiments([experiment], trained)
    name, found, path = show.find_log(directory, trial, stage)
    print(f"{experiment}/{name}, {found}: {path}", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        show.print_log(path, lines, follow)


def cancel(
    experiment: ExperimentName,
    trials: Annotated[list[str] | None, typer.Argument(metavar="[TRIAL …]", help="Default: all of it.")] = None,
    trained: TrainedFolder = None,
) -> None:
    """Take an experiment's jobs, or those of some trials, out of the queue. Trainings that run write a checkpoint."""
    from pipeline.launch.submitting.cancel import cancel_trials
    from pipeline.launch.watching.show import find_trial

    (directory,) = find_experiments([experiment], trained)
    ids = cancel_trials(directory, [find_trial(directory, trial) for trial in trials or []])
    print(f"cancelled {', '.join(ids)}" if ids else "nothing is queued or running")


def retry(
    experiment: ExperimentName,
    only: Annotated[str, typer.Option(help="Kinds of failure, with commas between: oom,time. Default: all.")] = "",
    mem: Annotated[str | None, typer.Option(help="2x, or an amount such as 64G, for the stage that failed.")] = None,
    walltime: Annotated[str | None, typer.Option("--time", help="2x, or an amount such as 08:00:00.")] = None,
    pack: Annotated[str | None, typer.Option(help="Trials a job task, or auto; default: as before.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Job tasks at once; default: as before.")] = None,
    cluster: ClusterOption = None,
    wait: Wait = False,
    check: CheckOption = True,
    trained: TrainedFolder = None,
) -> None:
    """Queue the trials that failed again, and no others."""
    from pipeline.launch.submitting import retry as launcher
    from pipeline.launch.submitting.submit import Request

    n = None if pack is None else _pack(pack)
    changes = launcher.Changes(mem, walltime, n, max_parallel, use_cluster(cluster).profile if cluster else None)
    (directory,) = find_experiments([experiment], trained)
    kinds = [kind for kind in only.split(",") if kind]
    launcher.retry(directory, kinds, changes, Request(wait=wait, argv=tuple(sys.argv), check=check))


def _pack(text: str) -> int | Literal["auto"]:
    """What --pack says. Raises UserError for what is neither a number of trials nor auto."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--pack {text}: a number of trials from 1, or auto: {BY_FORECAST}")
    return int(text)
