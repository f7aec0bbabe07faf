"""The commands. Thin: parse, call, print. What needs torch is imported inside the command that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.errors import UserError, WorkError
from pipeline.experiment import Experiment, load_experiment
from pipeline.layout import ExperimentDir, all_experiments, trained_root
from pipeline.state import trial_state

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
    task: Annotated[str, typer.Argument(help="The scientific problem: beetles.")],
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other specimens.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="Size of the data set; 1: about 2,500 images.")] = 1.0,
    form: Annotated[
        str, typer.Option(help="parquet, csv (with image folders) or disk (datasets.save_to_disk).")
    ] = "parquet",
) -> None:
    """Write made-up data in a task's real schema, with a learnable signal."""
    from pipeline.tasks import load_task

    load_task(task).generate(out, seed=seed, scale=scale, form=form)
    print(f"wrote {out}")


@app.command()
def fetch(config: ConfigArgument, overrides: Overrides = None) -> None:
    """On the login node: bring data and weights into the cache and check them, so that jobs run without internet."""
    from pipeline.launch.manifest import sharing_features
    from pipeline.stages import fetch as stage

    trials = load_experiment(config, overrides or ()).trials
    stage.run([sharing[0].config for sharing in sharing_features(trials)])


@app.command()
def plan(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Show every trial and its state; nothing is run."""
    from pipeline.launch.plan import plan as states_of

    experiment = load_experiment(config, overrides or ())
    for trial, state in zip(experiment.trials, states_of(experiment), strict=True):
        print(f"{state.state:<12}{trial.name}{'  ' + state.reason if state.reason else ''}")
    print(f"{len(experiment.trials)} trials in {experiment.dir.path}")


@app.command()
def submit(
    config: ConfigArgument,
    overrides: Overrides = None,
    cluster: Annotated[str, typer.Option(help="slurm, or local: the same stages on this machine.")] = "slurm",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show every script, queue nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return only when the last job has ended.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Trials at once with --cluster local.")] = 1,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, help="Tasks of each array that Slurm may run at once; default: all.")
    ] = None,
) -> None:
    """Queue extraction, training, evaluation and collection of all trials that have no results yet."""
    from pipeline.launch import submit as launcher

    experiment = load_experiment(config, overrides or ())
    launcher.submit(experiment, launcher.Request(cluster, dry_run, wait, workers, max_parallel, tuple(sys.argv)))


@app.command()
def extract(
    config: ConfigArgument,
    overrides: Overrides = None,
    once: Annotated[
        bool, typer.Option("--once", help="One of several jobs extracts everything, the others wait.")
    ] = False,
) -> None:
    """Make the features that training reads. The tasks of a Slurm array share the work."""
    from pipeline.launch import jobs

    experiment = load_experiment(config, overrides or ())
    if once:
        _record_plan(experiment)
    jobs.extract_features(experiment.trials, once)


@app.command()
def train(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Train this job's share of the trials, one after another. The tasks of a Slurm array share them out."""
    from pipeline.launch import jobs
    from pipeline.launch.deal import my_share

    experiment = load_experiment(config, overrides or ())
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
    experiment = load_experiment(config, overrides or ())
    if queue:
        from pipeline.launch.slurm import queue_evaluation

        print(f"evaluation: job {queue_evaluation(experiment, [config, *(overrides or ())])}", flush=True)
        return
    from pipeline.launch import jobs
    from pipeline.launch.deal import my_share

    jobs.evaluate_trials(my_share(experiment.trials))


@app.command()
def collect(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Bring the results of an experiment together in results.csv."""
    from pipeline.stages import collect as stage

    stage.run(load_experiment(config, overrides or ()).config)


@app.command()
def status(experiments: ExperimentNames = None, trained: TrainedFolder = None) -> None:
    """Show each trial's state."""
    from pipeline.results import no_trials
    from pipeline.state import planned_trials

    found = [
        (experiment, name) for experiment in _experiments(experiments, trained) for name in planned_trials(experiment)
    ]
    for experiment, name in found:
        state = trial_state(experiment.trial(name))
        print(f"{state.state:<12}{experiment.path.name}/{name}{'  ' + state.reason if state.reason else ''}")
    if not found:
        print(no_trials(trained))


@app.command()
def results(
    experiments: ExperimentNames = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or json.")] = "table",
    sort: Annotated[str, typer.Option(help="Figure to sort by: r2, in_domain.r2, MAE, SPEI_30d.r2, …")] = "r2",
    trained: TrainedFolder = None,
) -> None:
    """All trials of all experiments with their metrics, best first; mean ± sd over seeds."""
    from pipeline import results as module

    rows = module.sort_rows(module.collect(_experiments(experiments, trained)), sort)
    if form == "table":
        module.print_table(module.summarize(rows, sort), trained)
    elif form == "markdown":
        print(module.to_markdown(module.summarize(rows, sort)), end="")
    elif form == "csv":
        print(module.to_csv(rows), end="")
    elif form == "json":
        print(module.to_json(rows))
    else:
        raise UserError(f"--format {form}: choose table, csv, markdown or json")


@app.command()
def predict(
    trial: Annotated[Path, typer.Argument(help="A trained trial's folder.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    domain: Annotated[str | None, typer.Option(help="Their domain; default: unknown.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu; default: the trial's.")] = None,
) -> None:
    """Print a trained model's predictions for new images."""
    from pipeline.stages.predict import predict_files

    for image, values in zip(images, predict_files(trial, images, domain, device), strict=True):
        print(f"{image}\t" + "\t".join(f"{name}={value:.4f}" for name, value in values.items()), flush=True)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point: a user's mistake ends with its message and status 2, failed work with status 1; neither with a traceback."""
    try:
        app()
    except UserError as error:
        print(f"carabid: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except WorkError as error:
        print(f"carabid: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:  # a disk that is full, a folder that may not be written: nothing a traceback would explain
        print(f"carabid: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(1) from None


def _record_plan(experiment: Experiment) -> None:
    """In a job that was submitted by hand: leave a record of its trials, so that those which never start are known."""
    from pipeline.launch.manifest import record_plan
    from pipeline.launch.slurm import own_job

    if job := own_job():
        record_plan(experiment, job)


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
