"""The commands. Thin: parse, call, print. What needs torch is imported inside the command that needs it."""

import os
import sys
from typing import Annotated

import typer

from pipeline import __version__
from pipeline.cli import launching, models, preparing, results, stages
from pipeline.cli.arguments import use_cluster
from pipeline.errors import REQUEUE_STATUS, RunAgain, UserError, WorkError

INTERRUPTED = 130
app = typer.Typer(
    help="Fine-tune vision foundation models on ecological images, on a Slurm cluster or on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    preparing.demo, preparing.generate, preparing.fetch, launching.plan, launching.doctor, launching.submit,
    stages.extract, stages.train, stages.evaluate, stages.collect,
    launching.status, launching.logs, launching.cancel, launching.retry,
    results.results, results.compare, models.predict, models.embed, models.export,
)  # fmt: skip
"""In the order of `carabid --help`."""
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if os.environ.get("CARABID_CLUSTER"):
        use_cluster(None)


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
