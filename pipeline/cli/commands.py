"""The commands. Thin: parse, call, print. What needs torch is imported inside the command that needs it."""

import os
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import launching, models, preparing, results, stages
from pipeline.cli.arguments import use_cluster
from pipeline.disk.secrets import complain
from pipeline.errors import REQUEUE_STATUS, RunAgain, UserError, WorkError

app = typer.Typer(
    help="Fine-tune vision foundation models on ecological images, on a Slurm cluster or on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    preparing.demo, preparing.init, preparing.generate, preparing.fetch, preparing.archive, preparing.split, preparing.inspect,
    launching.plan, launching.doctor, launching.submit,
    stages.extract, stages.train, stages.evaluate, stages.collect,
    launching.status, launching.logs, launching.cancel, launching.retry,
    results.results, results.compare, results.report, results.track, models.predict, models.explain,
    models.interpolate, models.embed, models.index, models.search, models.export, models.publish,
)  # fmt: skip
"""In the order of `carabid --help`."""
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    install_completion: Annotated[
        str | None, typer.Option(metavar="SHELL", help="Let the Tab key of bash or zsh complete commands, keys, trials.")
    ] = None,
    show_completion: Annotated[
        str | None, typer.Option(metavar="SHELL", help="Print what makes the Tab key of bash or zsh complete.")
    ] = None,
) -> None:
    said = [__version__] if version else []
    if install_completion or show_completion:
        from pipeline.cli import completion

        said += [completion.install(install_completion)] if install_completion else []
        said += [completion.script(show_completion).rstrip("\n")] if show_completion else []
    if said:
        print("\n".join(said))
        raise typer.Exit
    if os.environ.get("CARABID_CLUSTER"):
        use_cluster(None)


def run() -> None:
    """The command that was typed; how it ends, `pipeline.cli.main` tells."""
    try:
        app()
    except UserError as error:
        complain(error)
        raise SystemExit(2) from None
    except WorkError as error:
        complain(error)
        raise SystemExit(REQUEUE_STATUS if isinstance(error, RunAgain) else 1) from None
    except SystemExit as ended:  # what typer makes of Ctrl-C and of a closed pipe, without a word
        if ended.code == 130:
            raise KeyboardInterrupt from None
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
