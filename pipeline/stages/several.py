"""Where the processes of one training come from, and how they end together: started here by the main one, or by a launcher.

The main process does all that one process does; the others follow it (`follow`): they read the same trial and train along.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from functools import cache, partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from pipeline.config.trial import Config
from pipeline.device import check_gpus
from pipeline.disk.layout import TrialDir
from pipeline.disk.secrets import complain, print_traceback
from pipeline.errors import Interrupted, TakenOver, UserError, WorkError
from pipeline.experiments.reading import load_config
from pipeline.signals import StopFlag
from pipeline.training.process_ranks import Rank, launched
from pipeline.training.processes import ALONE, PATIENCE, OtherEnded, Processes, ending_with_others, joined

LOCALHOST = "127.0.0.1"
LOOKS = 0.2
"""Seconds between two looks at the other processes."""
GRACE = 30.0
"""Seconds in which a process notices by itself that another is gone; it may be waiting for that on the GPU, and for ever."""
COMING = timedelta(minutes=10)
"""How much later than another a process of a launcher may come to where they meet."""
TRAIN, NOTHING = "train", "nothing to train"
Follow = Callable[[Config, TrialDir, StopFlag, Rank, Any], None]
"""What a process does that is not the main one: train the trial along, from where they meet."""


@contextmanager
def together(config: Config, trial: TrialDir, device: torch.device, flag: StopFlag, follow: Follow) -> Iterator[Processes]:
    """All that train this trial, as the main process has them. Raises WorkError where another ends before the work is done,
    Interrupted where it was told to."""
    if config.train.processes == 1:
        yield ALONE
    elif rank := launched(config.train.processes):
        store = meeting(rank, trial)
        store.set("word", TRAIN)
        with joined(rank, store, device) as group:
            yield group
    else:
        if device.type == "cuda":
            check_gpus(config.train.processes)
        with _started(config.train.processes, trial, flag, follow) as (rank, store), joined(rank, store, device) as group:
            yield group


# ---------------------------------------------------------------- started by a launcher
def follow_launched(config: Config, trial: TrialDir, flag: StopFlag, rank: Rank, follow: Follow) -> None:
    """Wait for the main process's word, in a process that a launcher has started beside it, and train along."""
    store = meeting(rank, trial)
    store.set_timeout(PATIENCE * 1000)  # it may wait for another job that trains this trial
    with ending_with_others():
        word = store.get("word").decode()
        store.set(f"heard {rank.number}", "")
    if word == TRAIN:
        store.set_timeout(PATIENCE)
        with _silence():
            follow(config, trial, flag, rank, store)


def nothing_to_follow(config: Config, trial: TrialDir) -> None:
    """Let the processes that a launcher has started go on, if they have not been told to train; and wait until all have heard it:
    this one, which keeps the place where they meet, may end next, and another may still be loading its libraries."""
    if rank := launched(config.train.processes):
        store = meeting(rank, trial)
        store.compare_set("word", "", NOTHING)
        with suppress(RuntimeError):  # whoever has ended hears nothing
            store.wait([f"heard {number}" for number in range(1, rank.size)], COMING)


def meeting(rank: Rank, trial: TrialDir) -> Any:
    """Where the processes of a launcher meet for this trial."""
    return PrefixStore(trial.path.name, _store(rank))


@cache
def _store(rank: Rank) -> Any:
    kept_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_master = rank.is_main and not kept_by_torchrun
    try:
        store = TCPStore(*rank.address, is_master=is_master, wait_for_workers=False, timeout=COMING)
    except RuntimeError as error:
        where, why = ":".join(map(str, rank.address)), str(error).strip().splitlines()[0]
        raise WorkError(f"the processes of this training cannot meet at {where} (MASTER_ADDR, MASTER_PORT): {why}") from error
    store.set_timeout(PATIENCE)
    return store


# ---------------------------------------------------------------- started here
@contextmanager
def _started(n: int, trial: TrialDir, flag: StopFlag, follow: Follow) -> Iterator[tuple[Rank, Any]]:
    """Start the others; they end when the block does."""
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
    ranks = [Rank(number, n, number, (LOCALHOST, store.port)) for number in range(n)]
    context = multiprocessing.get_context("spawn")  # a forked copy of a process that has loaded CUDA cannot use it
    others = [context.Process(target=_begin, args=(follow, str(trial.path), rank), daemon=True) for rank in ranks[1:]]
    for each in others:
        each.start()
    done = threading.Event()
    threading.Thread(target=_watch, args=(others, done), daemon=True).start()
    try:
        _wait_for(others, store, flag)
        yield ranks[0], store
    except OtherEnded as error:
        raise _end_of(others, flag) from error
    finally:
        done.set()
        for each in others:
            each.kill()
            each.join()


def _wait_for(others: Sequence[SpawnProcess], store: Any, flag: StopFlag) -> None:
    """Until all others have come to where they meet."""
    while not store.check([f"here {number}" for number in range(1, len(others) + 1)]):
        if flag.asked():
            raise Interrupted("told to stop before the processes of this training had started: run it again to go on")
        if any(each.exitcode is not None for each in others):
            raise OtherEnded
        time.sleep(LOOKS)


def _end_of(others: Sequence[SpawnProcess], flag: StopFlag) -> WorkError:
    """Why the training cannot go on, in words."""
    if flag.asked():
        return Interrupted("told to stop, as were the other processes of this training; the last checkpoint stands, run it again")
    for each in others:
        each.join(1)
    ends = [
        f"process {number} of {len(others) + 1} {_words(each.exitcode)}" for number, each in enumerate(others, 2) if each.exitcode
    ]
    return WorkError(
        f"{', '.join(ends) or 'another process'} while training: what it said itself stands above this; run it again"
    )


def _words(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}"
    return f"was killed by {signal.Signals(-status).name} (out of memory?)"


def _watch(others: Sequence[SpawnProcess], done: threading.Event) -> None:
    """End this process if another has failed and it does not notice: it may wait for that on the GPU, where no error comes."""
    while not done.wait(LOOKS):
        if any(each.exitcode for each in others) and not done.wait(GRACE):
            complain(_end_of(others, StopFlag()))
            os._exit(1)


def _begin(follow: Follow, path: str, rank: Rank) -> None:
    """What a process that was started here does."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    trial = TrialDir(Path(path))
    with StopFlag().installed() as flag:
        store = TCPStore(*rank.address, is_master=False, timeout=PATIENCE)
        store.set(f"here {rank.number}", "")
        _said_by(rank, partial(follow, load_config(trial.config), trial, flag, rank, store))


@contextmanager
def _silence() -> Iterator[None]:
    """No word on stdout: the main process says it."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _said_by(rank: Rank, work: Callable[[], None]) -> None:
    """Do the work; exit with 1 and the reason if it fails."""
    try:
        with _silence():
            work()
    except (Interrupted, TakenOver, OtherEnded, KeyboardInterrupt):
        return  # the main process says so
    except (UserError, WorkError) as error:
        complain(f"process {rank.number + 1} of {rank.size}: {error}")
        sys.exit(1)
    except Exception as error:
        print_traceback(error)
        sys.exit(1)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    os._exit(1)
