"""The commands that come before any trial: the demo, made-up data, what must be in the cache, and what a split parts."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.arguments import ConfigArgument, Overrides, load
from pipeline.config.identity import plain
from pipeline.errors import UserError


def demo(out: Annotated[Path | None, typer.Option(help="Folder to work in; default: demo/ under the root.")] = None) -> None:
    """Everything at once on generated beetles: no Slurm, no GPU, no network."""
    from pipeline import demo as module

    module.run(out)


def generate(
    task: Annotated[str, typer.Argument(help="The scientific problem: beetles, biomass, butterflies or species.")],
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other images.")] = 0,
    scale: Annotated[float, typer.Option(min=0.01, help="Size of the data set; 1: its usual size.")] = 1.0,
    form: Annotated[
        str | None, typer.Option(help="beetles: parquet, csv or disk (save_to_disk); species: csv or folder.")
    ] = None,
) -> None:
    """Write made-up data in a task's real schema, with a learnable signal."""
    from pipeline.tasks import generator

    generator(task)(out, seed=seed, scale=scale, **({} if form is None else {"form": form}))
    print(f"wrote {out}")


def fetch(config: ConfigArgument, overrides: Overrides = None) -> None:
    """On the login node: bring data and weights into the cache and check them, so that jobs run without internet."""
    from pipeline.launch.manifest.manifest import sharing_features
    from pipeline.stages import fetch as stage

    trials = load(config, overrides).trials
    stage.run([sharing[0].config for sharing in sharing_features(trials)])


def split(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write every image's partition, and a picture.")
    ] = None,
) -> None:
    """Show which images and classes train, validate, test and are held out; --out writes them."""
    from pipeline.reporting import partitions as module

    trials = load(config, overrides).trials
    if len({str(plain(trial.config.data)) for trial in trials}) > 1:
        raise UserError(f"{config} makes trials on several splits: name one, as in data.split.fold=0")
    found = module.partitions(trials[0].config)
    module.show(found)
    for path in module.write(found, out) if out else ():
        print(f"wrote {path}")
