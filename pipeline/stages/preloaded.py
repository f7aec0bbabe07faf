"""Loaded by the process that workers of `--cluster local` are forked from: torch, once for all of them.

Where that fails, it fails again in a worker, whose trial says why; an error here would leave nobody to say it.
"""

from contextlib import suppress

with suppress(Exception):
    import torch  # noqa: F401
