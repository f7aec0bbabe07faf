"""A job of a stage that is at work until it gets a signal: what a process runs that is forked from a warm one (`forked`)."""

import signal
import time
from types import ModuleType

from pipeline.disk.layout import root
from pipeline.disk.writing import write_text
from pipeline.launch.jobs import jobs
from pipeline.stages import collect, evaluate, extract
from tests.forked import settle

STAGES: dict[str, ModuleType] = {"extract": extract, "evaluate": evaluate, "collect": collect}


def work(stage: str, manifest: str, environ: dict[str, str], out: str, comes_further: bool) -> None:
    """The stage of a submission's first job task; what it prints goes to a file, "working" as soon as it can be signalled."""
    settle(environ, out, out)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # as submitit does: it swallows SIGTERM

    def at_work(*_: object, **__: object) -> None:
        if comes_further:
            write_text(root() / "features" / "key" / "shard.json", "")
        print("working", flush=True)
        time.sleep(60)

    STAGES[stage].run = at_work
    getattr(jobs, stage)(manifest, 0)
