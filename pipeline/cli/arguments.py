"""What commands have in common: their arguments and options, and how an experiment is found by them. What a configuration is, is
loaded when one is read: `--help` and completion answer without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.disk.layout import ExperimentDir, all_experiments, trained_root
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from pipeline.experiments.cluster import Cluster
    from pipeline.experiments.reading import Experiment

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML under configs/, or your own.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE …]", help="Overrides; key=a,b makes a grid.")]
TrainedFolder = Annotated[Path | None, typer.Option(help="Where experiments lie, if paths.trained says so.")]
ClusterOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Profile in configs/cluster/, or a YAML; default: $CARABID_CLUSTER, else slurm."),
]
ExperimentNames = Annotated[list[str] | None, typer.Argument(metavar="[EXPERIMENT …]", help="Default: all of them.")]
ExperimentName = Annotated[str, typer.Argument(help="Its name.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return only when the last job has ended.")]


def use_cluster(cluster: str | None) -> Cluster:
    """The cluster profile, whose root is looked in from now on."""
    from pipeline.experiments.cluster import load_cluster, use_root

    site = load_cluster(cluster)
    use_root(site.profile)
    return site


def load(config: str, overrides: list[str] | None, site: Cluster | None = None) -> Experiment:
    """An experiment on top of a profile. Raises UserError also for what its tasks can say before any data are read."""
    from pipeline.config.per_block import sharing
    from pipeline.experiments.reading import load_experiment
    from pipeline.tasks import check  # loads numpy

    experiment = load_experiment(config, overrides or (), (site or use_cluster(None)).layer)
    for each in {sharing(trial.config, ("task", "select")): trial.config for trial in experiment.trials}.values():
        check(each)
    return experiment


def find_experiments(names: list[str] | None, trained: Path | None) -> list[ExperimentDir]:
    """Those of these names, else all that there are. Raises UserError for a name that there is not."""
    found = all_experiments(trained)
    known = {experiment.path.name: experiment for experiment in found}
    for name in names or []:
        if name not in known:
            raise UserError(f"there is no experiment {name} in {trained or trained_root()}; {nearest(name, known)}")
    return [known[name] for name in names] if names else found
