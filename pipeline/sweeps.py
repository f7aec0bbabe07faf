"""How often Python's collector of cycles looks at all objects: the libraries that a command loads leave a million of them, and to
look at each again and again, and once more at the end, is a third of what it takes to load open_clip."""

import atexit
import gc

FULL = 1000
"""Sweeps of what is younger before one of everything (Python's default is 10)."""


def sweep_seldom() -> None:
    """For the beginning of a process. What dies young is swept as before: a cycle that holds a batch goes with the next ones."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, FULL)
    atexit.register(gc.freeze)  # Python's last sweep, of what the end of the process frees anyway, finds nothing
