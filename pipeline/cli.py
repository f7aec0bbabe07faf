"""The commands. Thin: parse, call, print. What needs torch is imported inside the command that needs it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import __version__
from pipeline.disk.layout import ExperimentDir, all_experiments, trained_root
from pipeline.errors import REQUEUE_STATUS, RunAgain, UserError, WorkError
from pipeline.experiments.cluster import Cluster, load_cluster, use_root
from pipeline.experiments.reading import Experiment, load_experiment

if TYPE_CHECKING:
    from pipeline.reporting.results import Row

INTERRUPTED = 130
app = typer.Typer(
    help="Fine-tune vision foundation models on ecological images, on a Slurm cluster or on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML under configs/, or your own.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE …]", help="Overrides; key=a,b makes a grid of trials.")
]
TrainedFolder = Annotated[
    Path | None, typer.Option(help="Where the experiments lie, if paths.trained put them elsewhere.")
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Profile in configs/cluster/ (slurm, local, …), or a YAML; default: $CARABID_CLUSTER, else slurm.",
    ),
]
ExperimentNames = Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT …]", help="Default: all of them.")]


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Folder to work in; default: demo/ under the root.")] = None,
) -> None:
    """Everything at once on generated beetles: no Slurm, no GPU, no network."""
    from pipeline import demo as module

    module.run(out)


@app.command()
def generate(
    task: Annotated[str, typer.Argument(help="The scientific problem: beetles or butterflies.")],
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="Size of the data set; 1: about 2,500 images.")] = 1.0,
    form: Annotated[
        str | None,
        typer.Option(
            help="parquet, csv (with image folders) or disk (datasets.save_to_disk); butterflies: csv. Default: the task's."
        ),
    ] = None,
) -> None:
    """Write made-up data in a task's real schema, with a learnable signal."""
    from pipeline.tasks import generator

    generator(task)(out, seed=seed, scale=scale, **({} if form is None else {"form": form}))
    print(f"wrote {out}")


@app.command()
def fetch(config: ConfigArgument, overrides: Overrides = None) -> None:
    """On the login node: bring data and weights into the cache and check them, so that jobs run without internet."""
    from pipeline.launch.manifest.manifest import sharing_features
    from pipeline.stages import fetch as stage

    trials = _load(config, overrides).trials
    stage.run([sharing[0].config for sharing in sharing_features(trials)])


@app.command()
def plan(config: ConfigArgument, overrides: Overrides = None, cluster: ClusterOption = None) -> None:
    """Show every trial, its state and the reason; nothing is run."""
    from pipeline.launch.watching.plan import lines

    for line in lines(_load(config, overrides, cluster)):
        print(line)


@app.command()
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

    site = load_cluster(cluster)
    experiment = load_experiment(config, overrides or (), site.layer)
    failed = []
    for line in module.run(Context(experiment, site.profile, probe, patience)):
        print(line, flush=True)
        failed += [line.what] if line.verdict == "FAIL" else []
    if failed:
        raise WorkError(f"not ready: {', '.join(failed)}")


@app.command()
def submit(
    config: ConfigArgument,
    overrides: Overrides = None,
    cluster: ClusterOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every script, queue nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return only when the last job has ended.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at once with --cluster local.")] = 1,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Tasks of each array that Slurm may run at once; default: all.")
    ] = None,
    pack: Annotated[int, typer.Option(min=1, help="Trials that share a task and its GPU, side by side.")] = 1,
) -> None:
    """Queue extraction, training, evaluation and collection of all trials that have no results yet."""
    from pipeline.launch.submitting import submit as launcher

    site = _site(cluster)
    experiment = load_experiment(config, overrides or (), site.layer)
    launcher.submit(
        experiment, launcher.Request(site.profile, dry_run, wait, workers, max_parallel, pack, tuple(sys.argv))
    )


@app.command()
def extract(
    config: ConfigArgument,
    overrides: Overrides = None,
    once: Annotated[
        bool, typer.Option("--once", help="One of several jobs extracts everything, the others wait.")
    ] = False,
) -> None:
    """Make the features that training reads. The tasks of a Slurm array share the work."""
    from pipeline.launch.jobs import jobs

    experiment = _load(config, overrides)
    if once:
        _record_plan(experiment)
    jobs.extract_features(experiment.trials, once)


@app.command()
def train(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Train this job's share of the trials, one after another. The tasks of a Slurm array share them out."""
    from pipeline.launch.jobs import jobs
    from pipeline.launch.manifest.sharding import my_share

    experiment = _load(config, overrides)
    _record_plan(experiment)
    jobs.train_trials(my_share(experiment.trials))


@app.command()
def evaluate(
    config: ConfigArgument,
    overrides: Overrides = None,
    queue: Annotated[
        bool, typer.Option("--queue", help="In a training job: queue the evaluation of the whole array instead.")
    ] = False,
) -> None:
    """Evaluate this job's share of the trials from their folders: results.json beside each model."""
    experiment = _load(config, overrides)
    if queue:
        from pipeline.launch.submitting.sbatch import queue_evaluation

        print(f"evaluation: job {queue_evaluation(experiment, [config, *(overrides or ())])}", flush=True)
        return
    from pipeline.launch.jobs import jobs
    from pipeline.launch.manifest.sharding import my_share

    jobs.evaluate_trials(my_share(experiment.trials))


@app.command()
def collect(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Bring the results of an experiment together in results.csv."""
    from pipeline.stages import collect as stage

    stage.run(_load(config, overrides).config)


@app.command()
def status(
    experiments: ExperimentNames = None,
    trained: TrainedFolder = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it as a table, again and again.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks with --watch.")] = 15,
) -> None:
    """Show each trial's state: done, running, queued, failed (how, and what to do), …"""
    from pipeline.launch.watching import show
    from pipeline.reporting.results import no_trials

    found = _experiments(experiments, trained)
    if watch:
        show.watch(found, every)
        return
    lines = list(show.status_lines(found))
    print("\n".join(lines) if lines else no_trials(trained))


@app.command()
def logs(
    experiment: Annotated[str, typer.Argument(help="Its name.")],
    trial: Annotated[str, typer.Argument(help="Name of the trial, or a part of it that no other has.")],
    stage: Annotated[str | None, typer.Option(help="extract, train or evaluate; default: the last one.")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is written, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 100,
    trained: TrainedFolder = None,
) -> None:
    """Print the log of a trial's last attempt."""
    from pipeline.launch.watching import show

    (directory,) = _experiments([experiment], trained)
    name, found, path = show.find_log(directory, trial, stage)
    print(f"{experiment}/{name}, {found}: {path}", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        show.print_log(path, lines, follow)


@app.command()
def cancel(
    experiment: Annotated[str, typer.Argument(help="Its name.")],
    trials: Annotated[list[str] | None, typer.Argument(metavar="[TRIAL …]", help="Default: all of it.")] = None,
    trained: TrainedFolder = None,
) -> None:
    """Take an experiment's jobs, or those of some trials, out of the queue. Trainings that run write a checkpoint."""
    from pipeline.launch.submitting.cancel import cancel_trials
    from pipeline.launch.watching.show import find_trial

    (directory,) = _experiments([experiment], trained)
    ids = cancel_trials(directory, [find_trial(directory, trial) for trial in trials or []])
    print(f"cancelled {', '.join(ids)}" if ids else "nothing is queued or running")


@app.command()
def retry(
    experiment: Annotated[str, typer.Argument(help="Its name.")],
    only: Annotated[str, typer.Option(help="Kinds of failure, with commas between: oom,time. Default: all.")] = "",
    mem: Annotated[str | None, typer.Option(help="2x, or an amount such as 64G, for the stage that failed.")] = None,
    walltime: Annotated[str | None, typer.Option("--time", help="2x, or an amount such as 08:00:00.")] = None,
    pack: Annotated[int | None, typer.Option(min=1, help="Trials a task; default: as before.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Tasks at once; default: as before.")] = None,
    cluster: ClusterOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return only when the last job has ended.")] = False,
    trained: TrainedFolder = None,
) -> None:
    """Queue the trials that failed again, and no others."""
    from pipeline.launch.submitting import retry as launcher
    from pipeline.launch.submitting.submit import Request

    changes = launcher.Changes(mem, walltime, pack, max_parallel, _site(cluster).profile if cluster else None)
    (directory,) = _experiments([experiment], trained)
    kinds = [kind for kind in only.split(",") if kind]
    launcher.retry(directory, kinds, changes, Request(wait=wait, argv=tuple(sys.argv)))


@app.command()
def results(
    experiments: ExperimentNames = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or json.")] = "table",
    sort: Annotated[
        str | None,
        typer.Option(help="Figure to sort by: r2, in_domain.r2, MAE, SPEI_30d.r2, …; roc_auc, … Default: r2, roc_auc."),
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Hours, GPU-hours, nodes and jobs of each trial instead of its metrics.")
    ] = False,
    trained: TrainedFolder = None,
) -> None:
    """All trials of all experiments with their metrics, best first; mean ± sd over seeds and folds."""
    from pipeline.reporting import results as module

    found = _experiments(experiments, trained)
    tables = module.by_look(module.collect(found))
    by = module.sorts(tables, sort)
    rows = [row for look, some in tables.items() for row in module.sort_rows(some, by[look])]
    if cost:
        _show_cost(found, rows, form, trained)
        return
    lines = {look: module.summarize(some, by[look]) for look, some in tables.items()}
    texts = {"csv": partial(module.to_csv, rows), "markdown": partial(module.to_markdown, lines)}
    _show(form, partial(module.print_tables, lines, trained), texts | {"json": partial(module.to_json, rows)})


def _show_cost(found: list[ExperimentDir], rows: list[Row], form: str, trained: Path | None) -> None:
    from pipeline.reporting import cost as module

    costs = module.collect(found, rows)
    forms = {"csv": module.to_csv, "markdown": module.to_markdown, "json": module.to_json}
    texts = {name: partial(write, costs) for name, write in forms.items()}
    _show(form, partial(module.print_table, costs, trained), texts)


def _show(form: str, table: Callable[[], None], texts: Mapping[str, Callable[[], str]]) -> None:
    """Print in the form that was asked for."""
    if form == "table":
        table()
    elif form in texts:
        print(texts[form]().removesuffix("\n"))
    else:
        *others, last = texts
        raise UserError(f"--format {form}: choose {', '.join(['table', *others])} or {last}")


@app.command()
def compare(
    experiments: Annotated[list[str], typer.Argument(metavar="EXPERIMENT …", help="Their names.")],
    figure: Annotated[
        str | None, typer.Option(help="Figure of what was tested (roc_auc, r2, …); default: the task's first.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, markdown or json.")] = "table",
    trained: TrainedFolder = None,
) -> None:
    """Methods on the images that all of them tested: the one chosen on validation against each."""
    from pipeline.reporting import comparison as module

    found = module.compare(module.candidates(_experiments(experiments, trained)), figure)
    texts = {"markdown": partial(module.to_markdown, found), "json": partial(module.to_json, found)}
    _show(form, partial(module.print_table, found), texts)


@app.command()
def predict(
    trial: Annotated[Path, typer.Argument(help="A trained trial's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    domain: Annotated[str | None, typer.Option(help="Their domain; default: unknown.")] = None,
    species: Annotated[
        list[str] | None, typer.Option(help="Scientific name of all of them, or (repeated) of each; default: unknown.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu; default: the trial's.")] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Take them as images of one group: print mean ± sigma.")
    ] = False,
    colour_card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Image of the colour card photographed with them.")
    ] = None,
    scale_bar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Image of the scale bar photographed with them.")
    ] = None,
) -> None:
    """Print a trained model's predictions for new images, or its forecast of the group that they are of."""
    from pipeline.stages.predict import Origin, predict_files, predict_group

    origin = Origin(domain, tuple(species or ()), colour_card, scale_bar)
    if group:
        found = predict_group(trial, images, origin, device)
        texts = {
            name: f"{mu:.4f}" + (f" ± {sigma:.4f}" if sigma is not None else "") for name, (mu, sigma) in found.items()
        }
        print("\t".join(f"{name}={text}" for name, text in texts.items()))
        return
    for image, values in zip(images, predict_files(trial, images, origin, device), strict=True):
        print(f"{image}\t" + "\t".join(f"{name}={value:.4f}" for name, value in values.items()), flush=True)


@app.command()
def embed(
    folder: Annotated[Path, typer.Argument(help="Folder of images; those in its folders too.")],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="hf-hub:owner/name, local-dir:/a/folder or ARCHITECTURE:TAG of open_clip; a DINOv2 (facebook/dinov2-base, "
            "or its folder); timm:NAME; pixels:SIZE.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="The file to write: a row for each image.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images; default: one for each CPU.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace FILE.parquet if it is of other images or another backbone.")
    ] = False,
) -> None:
    """Write the embeddings of a plain folder of images to a Parquet file. The same command goes on after an interruption."""
    from pipeline.stages import embed as stage

    try:
        stage.run(stage.Request(folder, backbone, out, batch_size, threads, device, overwrite))
    except KeyboardInterrupt:
        again = shlex.join(["carabid", *sys.argv[1:]])
        print(f"carabid: what is embedded is kept; to go on: {again}", file=sys.stderr)
        raise


@app.command()
def export(
    trials: Annotated[
        list[Path] | None, typer.Argument(help="A trained trial's folder, or several: an ensemble of them.")
    ] = None,
    to: Annotated[str, typer.Option(help="The platform: codabench.")] = "codabench",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder to write.")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="Write DIR.zip too, as it is uploaded.")] = False,
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Put the backbone's weights in: it runs without internet.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Run the platform's protocol on this submission, a folder or a zip file, and write none.",
        ),
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(
            help="With --check: interpreter of an environment to run it in; default: the whitelist's packages of this one."
        ),
    ] = None,
    challenge: Annotated[
        str | None,
        typer.Option(
            help="With --check: beetles or butterflies; default: what an exported submission says, else beetles."
        ),
    ] = None,
    largest: Annotated[int, typer.Option(min=1, help="With --check: images of the largest group of beetles.")] = 500,
    gpu: Annotated[
        bool,
        typer.Option("--gpu", help="With --check: let it see the GPUs; default: none, as the platform may have none."),
    ] = False,
) -> None:
    """Write trained trials as a challenge submission, or check one as its platform would run it, without this package."""
    if check is not None:
        _check_submission(check, trials or out, python, largest, gpu, challenge)
    elif to != "codabench":
        raise UserError(f"--to {to}: choose codabench")
    elif out is None:
        raise UserError("say where to: --to codabench --out DIR; or --check DIR to check a submission that is there")
    else:
        from pipeline.export.codabench import export as write

        print(write(trials or [], out, zipped, with_backbone))


def _check_submission(
    folder: Path, other: object, python: Path | None, largest: int, gpu: bool, challenge: str | None
) -> None:
    """Print what was checked."""
    from pipeline.export import check

    if other:
        raise UserError("--check looks at a submission that is there: name no trials and no --out with it")
    for line in check.check(folder, python, largest, gpu, challenge):
        print(line)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if os.environ.get("CARABID_CLUSTER"):
        _site(None)


def main() -> None:
    """Entry point: a user's mistake ends with its message and status 2, failed work with status 1; neither with a traceback."""
    try:
        app()
    except UserError as error:
        print(f"carabid: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except WorkError as error:
        print(f"carabid: {error}", file=sys.stderr)
        raise SystemExit(REQUEUE_STATUS if isinstance(error, RunAgain) else 1) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # (typer makes this of Ctrl-C, without a word)
            print("carabid: interrupted", file=sys.stderr)
        raise
    except OSError as error:  # a disk that is full, a folder that may not be written: nothing a traceback would explain
        print(f"carabid: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def _site(cluster: str | None) -> Cluster:
    """The cluster profile, whose root is looked in from now on."""
    site = load_cluster(cluster)
    use_root(site.profile)
    return site


def _load(config: str, overrides: list[str] | None, cluster: str | None = None) -> Experiment:
    """An experiment, on top of a cluster profile."""
    return load_experiment(config, overrides or (), _site(cluster).layer)


def _record_plan(experiment: Experiment) -> None:
    """In a job that was submitted by hand: leave a record of its trials, so that those which never start are known."""
    from pipeline.launch.manifest.manifest import record_plan
    from pipeline.launch.manifest.sharding import array_shape
    from pipeline.launch.submitting.sbatch import own_job

    if job := own_job():
        record_plan(experiment, job, array_shape())


def _experiments(names: list[str] | None, trained: Path | None) -> list[ExperimentDir]:
    found = all_experiments(trained)
    known = {experiment.path.name: experiment for experiment in found}
    for name in names or []:
        if name not in known:
            raise UserError(
                f"there is no experiment {name} in {trained or trained_root()}; there are: {', '.join(known) or 'none'}"
            )
    return [known[name] for name in names] if names else found


if __name__ == "__main__":
    main()
