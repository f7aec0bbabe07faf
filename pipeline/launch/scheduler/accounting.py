"""What became of each job task by Slurm's accounting: one call of sacct for all of them. Loads no torch.

sacct of Slurm 22.05 knows no number of restarts. `--duplicates` lists what ended before a job was queued again as lines of
their own: the last line of a job is what became of it.
"""

from __future__ import annotations

import pwd
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pipeline.errors import WorkError
from pipeline.launch.scheduler.queue import ask

TIMEOUT = 30
"""Seconds. sacct itself tries for 45 where the database does not answer."""
WORDS_A_CALL = 500
"""Job names are some sixty characters; an argument may have 128 KiB."""
STATES = "CA,CD,F,NF,BF,OOM,PR,TO,DL,RQ,R,S,PD"
"""All of them. Named, or sacct leaves out what was cancelled before it could have begun, as jobs after a failed one are."""
FIELDS = "JobID,Submit,State,ExitCode,DerivedExitCode,Start,ElapsedRaw,ReqMem,NodeList,Reason,JobName"
"""The name comes last: it alone may hold a |."""
NODE_FAILURES = ("NODE_FAIL", "BOOT_FAIL")
N_FIELDS = FIELDS.count(",") + 1
DISABLED = "accounting storage is disabled"
OF_SHELLS = {4, 6, 7, 8, 9, 11, 12, 15}
"""Signals whose 128 + n a shell reports of a command they killed; sacct takes the 128 away. (Our commands end with 0, 1 or 2.)"""


@dataclass(frozen=True)
class Outcome:
    """The last attempt of a job task, or of a job without an array."""

    job: str
    """`41_3`, or `41` outside arrays."""
    name: str
    state: str
    """Slurm's word, upper case: COMPLETED, FAILED, OUT_OF_MEMORY, … RUNNING."""
    exit_code: int
    signal: int
    """What killed the script or a command in it; 0: nothing did."""
    seconds: int
    """How long the last attempt took."""
    node: str
    """Empty if it never ran."""
    reason: str = ""
    """Why it waited, in Slurm's word; empty if nothing held it."""
    mem: str = ""
    """What it asked for, as Slurm writes it."""
    by: str = ""
    """Who cancelled it; empty where Slurm did."""
    start: float | None = None
    """Seconds since 1970, by the controller's clock."""
    failed_nodes: tuple[str, ...] = ()
    """The nodes that failed under it, in this attempt or one before."""


def outcomes(names: Collection[str], since: str, jobs: Collection[str] = ()) -> list[Outcome] | None:
    """What became of the job tasks of my jobs with these names, or ids, run or ended since then (as `provenance.now` writes it).

    Tasks that wait, for the first time or again, are left out: squeue tells more of them. None where nothing can be known:
    there is no accounting, or no sacct; or it fails or does not answer, which is said on stderr.
    """
    asked = {"name": sorted(names), "jobs": sorted(jobs)}
    wanted = [
        f"--{option}={','.join(words[begin : begin + WORDS_A_CALL])}"
        for option, words in asked.items()
        for begin in range(0, len(words), WORDS_A_CALL)
    ]
    try:
        found = [_sacct(option, since) for option in wanted]
    except WorkError as error:
        print(f"carabid: {error}: going by logs and records alone", file=sys.stderr)
        return None
    if None in found:
        return None
    in_order = sorted((line for lines in found for line in lines or ()), key=lambda line: _number(line[1]))
    last = {job: line for line in in_order for job in _jobs(line[0])}
    failed = _failed_nodes(in_order)
    became = [replace(_outcome(job, line), failed_nodes=tuple(failed.get(job, ()))) for job, line in last.items()]
    return [outcome for outcome in became if outcome.state != "PENDING"]


def _sacct(wanted: str, since: str) -> list[list[str]] | None:
    """The fields of each line; None without accounting. Raises WorkError if sacct fails."""
    begin = datetime.fromisoformat(since).astimezone().strftime("%Y-%m-%dT%H:%M:%S")  # sacct knows no other time zones
    window = [f"--starttime={begin}", "--endtime=now+365days", f"--state={STATES}"]
    options = ["--allocations", "--duplicates", "--parsable2", "--noheader", f"--format={FIELDS}", *window]
    told = {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}  # seconds; lists of job tasks in full
    try:
        found = ask(["sacct", *options, wanted], told, TIMEOUT)
    except FileNotFoundError:
        return None
    except WorkError as error:
        if DISABLED in str(error):
            return None
        raise
    except OSError as error:
        raise WorkError(f"sacct cannot be called: {error}") from error
    lines = (line.split("|", N_FIELDS - 1) for line in found.splitlines())
    return [fields for fields in lines if len(fields) == N_FIELDS]


def _jobs(job: str) -> Iterator[str]:
    """`41_3` → itself; job tasks that never began stand in one line: `41_[0,4-8:2%2]` → 41_0, 41_4, 41_6, 41_8."""
    array = re.fullmatch(r"(\d+)_\[([^]%]*).*", job)
    if array is None:
        yield job
        return
    for first, last, step in re.findall(r"(\d+)(?:-(\d+))?(?::(\d+))?", array[2]):
        yield from (f"{array[1]}_{index}" for index in range(int(first), int(last or first) + 1, int(step or 1)))


def _outcome(job: str, line: Sequence[str]) -> Outcome:
    _, _, state, own, derived, start, seconds, mem, node, reason, name = line
    word, _, by = state.partition(" by ")
    exit_code, signal = _exit(own, derived)
    return Outcome(
        job=job,
        name=name,
        state=word.strip().upper(),
        exit_code=exit_code,
        signal=signal,
        seconds=_number(seconds),
        node="" if node.startswith("None") else node,
        reason="" if reason == "None" else reason,
        mem=mem,
        by=_user(by),
        start=float(start) if start.isdecimal() else None,
    )


def _user(number: str) -> str:
    """The name of a user id, the id itself where this node knows no such user."""
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError, OverflowError):
        return number


def _exit(own: str, derived: str) -> tuple[int, int]:
    """Exit code and signal from `code:signal` of the script, and of the worst of its steps."""
    code, signal = (_number(part) for part in f"{own}:".split(":")[:2])
    code -= 128 if code > 128 else 0
    if signal == 0 and code in OF_SHELLS:
        return 0, code
    return code, signal or (_number(derived.partition(":")[2]) if code else 0)


def _failed_nodes(lines: Iterable[Sequence[str]]) -> dict[str, dict[str, None]]:
    """Job → the nodes under which an attempt ended because they failed."""
    found: dict[str, dict[str, None]] = {}
    for job, _, state, *_, node, _, _ in lines:
        if state.startswith(NODE_FAILURES) and not node.startswith("None"):
            found.setdefault(job, {})[node] = None
    return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
