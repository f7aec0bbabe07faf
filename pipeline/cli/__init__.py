"""Where a command begins and ends. Loads next to nothing itself: until the commands are here Ctrl-C just ends the process."""

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Any

from pipeline.sweeps import sweep_seldom

INTERRUPTED, PIPE_CLOSED = 130, 141
"""As a shell calls the end of a process by SIGINT and by SIGPIPE."""
WORD = "carabid: interrupted\n"


def __getattr__(name: str) -> Any:
    """`app`, the commands as typer has them: loaded when it is asked for."""
    if name != "app":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from pipeline.cli.commands import app

    return app


def main() -> None:
    """Entry point: a user's mistake ends with its message and status 2, failed work with 1, Ctrl-C with a word and 130, a pipe
    that nobody reads any more (`carabid plan … | head -1`) without a word and with 141; none of them with a traceback."""
    if hears_ctrl_c := signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # (not in the background of a script)
        signal.signal(signal.SIGINT, _leave)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)
    sweep_seldom()
    if shell := os.environ.get("_CARABID_COMPLETE"):
        _complete(shell)
        return
    from pipeline.cli.commands import run
    from pipeline.disk.secrets import complain, print_traceback
    from pipeline.streams import flush_stdout, open_streams

    open_streams()
    sys.excepthook = lambda kind, error, trace: print_traceback(error)
    try:
        if hears_ctrl_c:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            run()
        finally:
            flush_stdout()
    except KeyboardInterrupt:
        sys.stderr.write(WORD)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        raise SystemExit(PIPE_CLOSED) from None
    except OSError as error:  # a disk that is full, a folder that may not be written: nothing a traceback would explain
        complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        raise SystemExit(1) from None


def _complete(shell: str) -> None:
    """For the shell's Tab key: a line for each candidate, and nothing else whatever happens."""
    from pipeline.cli.commands import app
    from pipeline.cli.completion import answer

    sys.stdout.write(answer(app, shell, sys.argv[1:]))


def _leave(number: int, frame: FrameType | None) -> None:
    """Nothing has begun that would have to be ended."""
    os.write(2, WORD.encode())
    os._exit(INTERRUPTED)
