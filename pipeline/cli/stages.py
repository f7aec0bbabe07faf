"""The commands that run one stage here and now: what jobs/*.sh call."""

from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.arguments import ConfigArgument, Overrides, load

if TYPE_CHECKING:
    from pipeline.experiments.reading import Experiment


def extract(
    config: ConfigArgument,
    overrides: Overrides = None,
    once: Annotated[bool, typer.Option("--once", help="One of several jobs extracts, the others wait.")] = False,
) -> None:
    """Make the features that training reads. The job tasks of a Slurm array share the work."""
    from pipeline.launch.jobs.extraction import extract_features

    experiment = load(config, overrides)
    if once:
        _record_plan(experiment)
    extract_features(experiment.trials, once)


def train(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Train this job's share of the trials, one after another or, where that is faster, several at once. The job tasks of a Slurm
    array share them out."""
    from pipeline.launch.jobs.trials import train_trials
    from pipeline.launch.manifest.sharding import my_share

    experiment = load(config, overrides)
    _record_plan(experiment)
    train_trials(my_share(experiment.trials))


def evaluate(
    config: ConfigArgument,
    overrides: Overrides = None,
    queue: Annotated[bool, typer.Option("--queue", help="In a training job: queue its array's evaluation.")] = False,
) -> None:
    """Evaluate this job's share of the trials from their folders: results.json beside each model."""
    experiment = load(config, overrides)
    if queue:
        from pipeline.launch.submitting.evaluation import queue_evaluation

        print(f"evaluation: job {queue_evaluation(experiment, [config, *(overrides or ())])}", flush=True)
        return
    from pipeline.launch.jobs.trials import evaluate_trials
    from pipeline.launch.manifest.sharding import my_share

    evaluate_trials(my_share(experiment.trials))


def collect(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Bring the results of an experiment together in results.csv."""
    from pipeline.stages import collect as stage

    stage.run(load(config, overrides).config)


def _record_plan(experiment: "Experiment") -> None:
    """In a job that was submitted by hand: leave a record of its trials, so that those which never start are known."""
    from pipeline.launch.manifest.manifest import record_plan
    from pipeline.launch.manifest.sharding import array_shape
    from pipeline.launch.submitting.evaluation import own_job

    if job := own_job():
        record_plan(experiment, job, array_shape())
