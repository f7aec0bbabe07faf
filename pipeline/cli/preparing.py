"""The commands that come before any trial: the demo, a first configuration, made-up data, what must be in the cache, and what
data are like."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.arguments import ConfigArgument, Overrides, load
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    from pipeline.config.trial import Config


def demo(out: Annotated[Path | None, typer.Option(help="Folder to work in; default: demo/ under the root.")] = None) -> None:
    """Everything at once on generated beetles: no Slurm, no GPU, no network."""
    from pipeline import demo as module

    module.run(out)


def init(
    place: Annotated[
        Path | None,
        typer.Argument(metavar="[TABLE|FOLDER]", help="A CSV or Parquet file, or images in a folder per class; default: here."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the classes to predict.")] = None,
    targets: Annotated[str | None, typer.Option(metavar="COLUMN,…", help="The columns with the numbers to predict.")] = None,
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column whose images are never parted; or none.")
    ] = None,
    domain: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the domain; or none.")] = None,
    image_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column that names the images.")] = None,
    images: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where the images lie.")] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help="As `carabid embed` takes it; pixels: none at all. Default: BioCLIP-2.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="The file to write; default: the table's name.")] = None,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Go on without images that are not there.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="Copy the job scripts into FOLDER (default: jobs) instead.")] = False,
) -> None:
    """Write the configuration of an experiment on a table, or on images in folders, that nobody has described yet."""
    from pipeline.data.roles import Wishes
    from pipeline.launch.drafting import beginning, scripts

    if jobs:
        lines = iter(scripts.copy_scripts(place or Path("jobs")))
    else:
        named = tuple(name.strip() for name in (targets or "").split(",") if name.strip())
        wishes = Wishes(image_column, images and images.expanduser(), label, named, group, domain)
        typed = shlex.join(["carabid", *sys.argv[1:]])
        request = beginning.Request(place or Path(), out, wishes, backbone, skip_bad_images, overwrite, typed)
        lines = beginning.begin(request, _ask)
    for line in lines:
        print(line, flush=True)


def _ask(question: str, answers: Sequence[str], option: str) -> str:
    """What a person at a terminal answers. Raises UserError, with the option that says it, where nobody is."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"{question} Say it by {option}.")

    def chosen(answer: str) -> str:
        if answer in answers:
            return answer
        raise typer.BadParameter(f"{nearest(answer, answers, listed=True)}")

    return str(typer.prompt(f"{question} [{'/'.join(answers)}]", value_proc=chosen, prompt_suffix=": "))


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


def archive(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Put many small image files into one, which extraction then reads: opening a file is what costs on a shared file system."""
    from pipeline.config.per_block import sharing
    from pipeline.features import archives
    from pipeline.tasks import load_task

    trials = load(config, overrides).trials
    for each in {sharing(trial.config, ("task", "data")): trial.config for trial in trials}.values():
        archives.make(each, load_task(each.task).load(each.data))


def split(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write every image's partition, and a picture.")
    ] = None,
) -> None:
    """Show which images and classes train, validate, test and are held out; --out writes them."""
    from pipeline.reporting import partitions as module

    found = module.partitions(_with_one_split(config, overrides))
    module.show(found)
    for path in module.write(found, out) if out else ():
        print(f"wrote {path}")


def inspect(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write it as a page, with charts and images.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Open so many images at most, drawn at random; 0: the table alone.")] = 3000,
) -> None:
    """Look at data before training: targets, classes, groups, images that are broken, copies that stand in several splits."""
    from pipeline.reporting.inspection import inspection as module

    module.inspect(_with_one_split(config, overrides), images, out)


def _with_one_split(config: str, overrides: list[str] | None) -> "Config":
    """A trial of the experiment. Raises UserError where its trials are on several data or splits."""
    from pipeline.config.identity import plain

    trials = load(config, overrides).trials
    if len({str(plain(trial.config.data)) for trial in trials}) > 1:
        raise UserError(f"{config} makes trials on several splits: name one, as in data.split.fold=0")
    return trials[0].config
