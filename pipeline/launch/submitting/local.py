"""The chain on this machine: the same stages, in worker processes that outlive a trial, forked from one that has loaded torch."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.disk.attempts import SHARED_BY
from pipeline.errors import Interrupted
from pipeline.launch.jobs import jobs
from pipeline.launch.manifest.manifest import Manifest
from pipeline.launch.submitting.sbatch import last_line
from pipeline.stages.shared import Shared
from pipeline.streams import output_to

MOST = 5  # names that a message lists
TOLD = threading.Event()
"""In a worker: it is to stop."""
SHARED = Shared()
"""In a worker: what its trials have loaded."""


def run(manifests: Sequence[Manifest], workers: int) -> bool:
    """Extract, train, evaluate and collect; an evaluation starts when its own training has ended well.

    Returns whether every trial was evaluated. A trial that fails leaves the others alone; one whose features cannot be made
    is not begun. Raises Interrupted on Ctrl-C and SIGTERM: running trainings write a checkpoint, what waits is not begun.
    """
    with _pool(workers) as pool:
        try:
            lacking = _extract(pool, manifests)
            evaluated = _train_and_evaluate(pool, manifests, lacking)
        except BrokenProcessPool:  # its other work has been reported already
            print("not run: what was left, because a worker process was killed (out of memory?)")
            evaluated = 0
    for manifest in manifests:
        jobs.collect(str(manifest.path))
    return evaluated == sum(len(manifest.entries) for manifest in manifests)


def _extract(pool: ProcessPoolExecutor, manifests: Sequence[Manifest]) -> set[tuple[Path, int]]:
    """Make all features; returns which could not be made, by manifest and number. Why is said once for each."""
    running = {
        pool.submit(_work, m.path, "extract", i): (m, features)
        for m in manifests
        for i, (features, *_) in enumerate(m.extractions)
    }
    lacking: set[tuple[Path, int]] = set()
    for future in as_completed(running):
        manifest, features = running[future]
        if (manifest.path, features) in lacking or _ended_well(future, "extract"):
            continue
        lacking.add((manifest.path, features))
        names = [entry.name for entry in manifest.entries if entry.features == features]
        more = f" and {len(names) - MOST} more" * (len(names) > MOST)
        print(f"not begun, for want of these features: {', '.join(names[:MOST])}{more}")
    return lacking


def _train_and_evaluate(pool: ProcessPoolExecutor, manifests: Sequence[Manifest], lacking: Set[tuple[Path, int]]) -> int:
    cells = [(m, i) for m in manifests for i, entry in enumerate(m.entries) if (m.path, entry.features) not in lacking]
    running = {pool.submit(_work, m.path, "train", i): ("train", m, i) for m, i in cells}
    evaluated = 0
    while running:
        future = next(as_completed(running))
        stage, manifest, index = running.pop(future)
        if not _ended_well(future, f"{stage} {manifest.experiment.path.name}/{manifest.entries[index].name}"):
            continue
        if stage == "evaluate":
            evaluated += 1
            continue
        try:
            running[pool.submit(_work, manifest.path, "evaluate", index)] = ("evaluate", manifest, index)
        except BrokenProcessPool:
            print(f"evaluate {manifest.entries[index].name}: not run: a worker process was killed")
    return evaluated


def _ended_well(future: Future[None], what: str) -> bool:
    try:
        future.result()
    except Exception as error:
        is_killed = isinstance(error, BrokenProcessPool)
        print(f"{what}: failed: {'a worker process was killed (out of memory?)' if is_killed else error}")
        return False
    print(f"{what}: done")
    return True


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes; if we are told to stop, they are too, and nothing that waits is begun."""
    # Not copies of this process: of one that has started threads (torch, Arrow) they may hang. Of one that has only loaded torch,
    # whose variables are those of when it was started.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.stages.preloaded"])
    _start_server()
    told, tell = context.Pipe(duplex=False)  # (it ends with this process, however that ends)
    variables = dict(os.environ) | {SHARED_BY: str(workers)}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(variables, told))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield pool
    except KeyboardInterrupt:
        print("interrupted: running trainings write a checkpoint …", flush=True)
        tell.close()
        raise Interrupted("interrupted; the same command goes on from here") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        tell.close()
        signal.signal(signal.SIGTERM, before)


def _start_server() -> None:
    """Start the process that workers are forked from. By itself it would look for modules in the current folder first, which may
    be another clone of this project or hold anything that is called `pipeline`: it is given the places of this process."""
    kept = dict(os.environ)
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(place or os.getcwd() for place in sys.path)}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _begin_worker(variables: Mapping[str, str], told: Connection) -> None:
    """In each worker: stop when the process that asked for it says so, or is gone. A training writes its checkpoint first."""
    os.environ.clear()
    os.environ.update(variables)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer; a training listens by itself
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # which the process that it was forked from ignores

    def watch() -> None:
        told.poll(None)
        TOLD.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _work(manifest_path: Path, stage: str, index: int) -> None:
    """One stage for one index, in a worker; what it prints goes to the experiment's logs."""
    if TOLD.is_set():  # the work before this one ended well all the same, and the pool had handed this one over already
        os._exit(1)
    manifest = jobs.manifest_at(str(manifest_path), SHARED)
    log = manifest.experiment.own_log(manifest.number, stage, index)
    with output_to(log):
        try:
            getattr(jobs, stage)(str(manifest_path), index, SHARED)
            return
        except SystemExit as ended:
            if isinstance(ended.__cause__, Interrupted):
                sys.stdout.flush()
                os._exit(1)  # told to stop: the pool has handed this worker its next work already
        except Exception:
            traceback.print_exc()
    said = last_line(log.read_text(errors="replace")).removeprefix("carabid: ")
    raise RuntimeError(f"{said or 'it said nothing'} (log: {log})")
