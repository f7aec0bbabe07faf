"""Loaded by the process that workers of `--cluster local` are forked from: torch, once for all of them.

Where that fails, it fails again in a worker, whose trial says why; an error here would leave nobody to say it. The process ends
with the one that has started it: a signal that is meant for all is for its workers, who have checkpoints to write.
"""

import signal
from contextlib import suppress

for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)

heard = signal.signal(
    signal.SIGINT, signal.SIG_IGN
)  # Ctrl-C while torch is read: who has started this one says what is to be said
with suppress(Exception):
    import torch  # noqa: F401
signal.signal(signal.SIGINT, heard)
