"""What class of failure ended a job task, and what to do about it: from the trial's record, Slurm's word and the log's end.

Everything here is pure. What an error is, Python knows best, so the trial's record counts first; what killed a process
without a word, Slurm and the log know. Loads no torch.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from pipeline.disk.layout import PROJECT
from pipeline.errors import causes
from pipeline.launch.scheduler.accounting import Outcome
from pipeline.launch.scheduler.queue import STUCK
from pipeline.signals import WALLTIME_SIGNAL

Kind = Literal["oom", "gpu-oom", "time", "preempted", "node", "error", "data", "disk", "dependency", "cancelled", "killed"]
KINDS: tuple[Kind, ...] = get_args(Kind)

REMEDIES: dict[Kind, str] = {
    "oom": "ask for more memory: `carabid retry EXPERIMENT --only oom --mem 2x`",
    "gpu-oom": "take a smaller train.batch_size or resources.extract_batch, or a GPU with more memory, and `carabid submit` "
    "again",
    "time": "give it more time: `carabid retry EXPERIMENT --only time --time 2x`; a training goes on from its checkpoint",
    "preempted": "`carabid retry EXPERIMENT --only preempted`: a training goes on from its checkpoint",
    "node": "`carabid retry EXPERIMENT --only node`: it keeps off the nodes that failed, and a training goes on from its "
    "checkpoint; tell the site which these are",
    "error": "read `carabid logs EXPERIMENT TRIAL`; mended outside the configuration, `carabid retry EXPERIMENT --only error`; "
    "with other values it is another trial: `carabid submit` its YAML",
    "data": "mend the data as the message says, then `carabid retry EXPERIMENT --only data`; with another configuration, "
    "`carabid submit` its YAML",
    "disk": "make room or raise the quota, or put paths.trained and paths.features (CARABID_ROOT) elsewhere; then "
    "`carabid retry EXPERIMENT --only disk`",
    "dependency": "mend what failed before it; `carabid retry EXPERIMENT` queues both again",
    "cancelled": "`carabid retry EXPERIMENT --only cancelled`: a training goes on from its checkpoint",
    "killed": "look for memory first: `carabid retry EXPERIMENT --only killed --mem 2x`; else ask the site who kills jobs",
}

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
OF_STATES: dict[str, Kind] = {
    "OUT_OF_MEMORY": "oom", "TIMEOUT": "time", "DEADLINE": "time", "PREEMPTED": "preempted",
    "NODE_FAIL": "node", "BOOT_FAIL": "node",
}  # fmt: skip
NO_LOG = 53
"""The "signal" by which Slurm says that it could not open the job's log."""
USAGE = 2
"""Our exit status where the request is wrong."""
HINTS = {
    signal.SIGKILL: "often memory that nobody measured",
    signal.SIGBUS: "often a full /dev/shm, or a file that was cut short while it was read",
    signal.SIGSEGV: "a fault in a library",
    signal.SIGABRT: "a fault in a library",
}

OF_WORDS: dict[Kind, str] = {
    "gpu-oom": r"torch(\.cuda)?\.OutOfMemoryError|(CUDA|HIP) out of memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED",
    "oom": r"MemoryError\b|can't allocate memory|Cannot allocate memory|bad_alloc|\[Errno 12\]",
    "disk": r"No space left on device|Disk quota exceeded|File too large|\[[Ee]rrno (27|28|122)\]|os error (27|28|122)\b"
    r"|PytorchStreamWriter failed writing|inline_container\.cc.*unexpected pos|basic_ios::clear: iostream error"
    r"|\d+ requested and \d+ written|database or disk is full",
    "time": r"pipeline\.errors\.OutOfTime|the walltime is over before it was done",
    "dependency": r"pipeline\.errors\.MissingFeatures",
    "data": r"pipeline\.errors\.UserError",
}
"""What an error is by its type and message, in the order of trust."""
ERRNOS = {
    errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded", errno.EFBIG: "File too large",
    errno.ENOMEM: "[Errno 12]",
}  # fmt: skip

MEMORY_LINE = re.compile(r"exceeded (job |step )?memory limit|oom[-_]kill|task \d+: Out Of Memory", re.I)
ENDS: dict[Kind, str] = {
    "time": r"DUE TO TIME LIMIT|carabid: SIGUSR2:|carabid: not queued again",
    "preempted": r"DUE TO PREEMPTION",
    "node": r"DUE TO NODE FAILURE|srun: error: Node failure on",
    "cancelled": r"CANCELLED AT [\dT:-]+ \*\*\*",
}
"""What Slurm, and our handlers of its signals, write into a log as a job ends."""
FAILED_NODE = re.compile(r"(?:JOB \d+ ON|Node failure on) (\S+)")
AGAIN = re.compile(r"^.*(?:DUE TO (?:JOB REQUEUE|PREEMPTION|NODE FAILURE)|Node failure on).*$", re.M)
"""What may be followed by the next attempt."""
DEATHS = re.compile(r"(?:^|: +(?:\d+ )?)(Killed|Segmentation fault|Bus error|Aborted)\b", re.M)
PROGRESS = r"SIG\w+: stopping|the walltime is near: shards"
"""What our own handlers say while nothing has failed."""
STOPPED = re.compile(r"told to stop\b.*\n?\Z")
"""How the log of a training ends that was told to, on this machine: it goes on from its checkpoint, and nothing has failed."""
LAST = 1000
SLURMS_LINE = re.compile(r"(slurmstepd|srun)\b")
FRAME = re.compile(r'^ *File "(?P<path>[^"\n]+)", line (?P<line>\d+), in (?P<name>.+)$', re.M)
TRACEBACK = "Traceback (most recent call last):"


@dataclass(frozen=True)
class Failure:
    """Why a job task, or a trial, failed."""

    kind: Kind
    what: str
    """One line."""
    remedy: str
    """What to do."""
    nodes: tuple[str, ...] = ()
    """The nodes that failed, where that is what happened."""


def classify(record: Mapping[str, Any] | None, outcome: Outcome | None, log: str) -> Failure | None:
    """The failure of a trial, from its failure.json, its job task's last attempt and the end of that attempt's log.

    Each may be missing. None if nothing failed, or not yet: a job task that runs or waits again is not one that failed.
    """
    log = _last_attempt(log)
    recorded = _of_record(record) if record else None
    if outcome is None:
        return _without_accounting(recorded, record, log)
    if outcome.state not in ENDED | OF_STATES.keys() and not _is_stuck(outcome):
        return recorded if _is_of(record, outcome) else None
    if outcome.state == "COMPLETED":  # a job task of several trials, of which this one failed
        return recorded
    if recorded and (_is_of(record, outcome) or not outcome.node):
        return recorded
    failure = _of_outcome(outcome, log)
    if recorded and failure.kind in ("error", "data") and TRACEBACK not in log:
        return recorded  # the reason that extraction left is older than the training which found no features
    return failure


def kind_of(error: BaseException) -> Kind:
    """The class of an error, by its type and message and those of its causes: torch's types are told by their names."""
    words = []
    for each in causes(error):
        types = " ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in type(each).__mro__)
        number = ERRNOS.get(each.errno or 0, "") if isinstance(each, OSError) else ""
        words.append(f"{types} {number} {each}")
    return _kind_in("\n".join(words))


def last_frame(traceback: str) -> str:
    """Where an error was raised: `pipeline/training/loop.py:94 in fit_epoch`, the innermost frame that is ours.

    The innermost of all where none is; of several tracebacks, the last. Empty if there is none.
    """
    frames = [match.groupdict() for match in FRAME.finditer(traceback[max(traceback.rfind(TRACEBACK), 0) :])]
    ours = [frame for frame in frames if _is_ours(frame["path"])]
    if not frames:
        return ""
    frame = (ours or frames)[-1]
    path = re.sub(r"^.*/(?:(?:site|dist)-packages|lib/python[\d.]+)/", "", frame["path"])
    if ours:
        path = f"pipeline/{path.rpartition('/pipeline/')[2]}"
    return f"{path}:{frame['line']} in {frame['name'].strip()}"


# ---------------------------------------------------------------- errors
def _kind_in(words: str) -> Kind:
    return next((kind for kind, pattern in OF_WORDS.items() if re.search(pattern, words)), "error")


def _is_ours(path: str) -> bool:
    """Whether a file is one of this package, wherever the copy that ran lay."""
    inside = path.rpartition("/pipeline/")[2]
    with suppress(OSError, ValueError):
        return inside != path and (PROJECT / "pipeline" / inside).is_file()
    return False


# ---------------------------------------------------------------- the trial's record
def _of_record(record: Mapping[str, Any]) -> Failure:
    message, traceback = str(record.get("message") or ""), str(record.get("traceback") or "")
    told = record.get("kind")
    kind = next((kind for kind in KINDS if kind == told), None) or _kind_in(f"{message}\n{traceback}")
    return _failure(kind, _line(message), last_frame(traceback))


def _is_of(record: Mapping[str, Any] | None, outcome: Outcome) -> bool:
    """Whether a record was not written before this attempt began. Where a time is missing, it is taken not to be."""
    if record and outcome.start is not None:
        with suppress(KeyError, ValueError, OverflowError, OSError):
            return datetime.fromisoformat(str(record["written"])).timestamp() >= outcome.start
    return record is not None


# ---------------------------------------------------------------- Slurm's word
def _is_stuck(outcome: Outcome) -> bool:
    return outcome.state == "PENDING" and outcome.reason == STUCK


def _of_outcome(outcome: Outcome, log: str) -> Failure:
    if kind := OF_STATES.get(outcome.state):
        nodes = (outcome.failed_nodes or (outcome.node,) * bool(outcome.node)) if kind == "node" else ()
        return replace(_failure(kind, _by_slurm(kind, outcome)), nodes=nodes)
    if MEMORY_LINE.search(log):
        return _failure("oom", _by_slurm("oom", outcome))
    if _is_stuck(outcome) or outcome.state in ("CANCELLED", "REVOKED"):
        return _cancelled(outcome)
    logged = _of_log(log)
    if outcome.signal:
        return logged if logged and logged.kind in ("oom", "gpu-oom", "disk") else _killed(outcome)
    if logged:
        is_usage = logged.kind == "error" and outcome.exit_code == USAGE
        return _failure("data", logged.what) if is_usage else logged
    last = next((line for line in reversed(log.splitlines()) if line.strip() and not SLURMS_LINE.match(line)), "")
    return _failure("error", f"exit status {outcome.exit_code}: {_line(last) or 'the log does not say why'}")


def _by_slurm(kind: Kind, outcome: Outcome) -> str:
    after, on = timedelta(seconds=outcome.seconds), f" on {outcome.node}" if outcome.node else ""
    asked = f" (it asked for {outcome.mem})" if outcome.mem else ""
    return {
        "oom": f"it used more memory than it had{on}{asked}",
        "time": f"its walltime was over, after {after}",
        "preempted": f"another job took its place{on}, after {after}",
        "node": f"its node failed ({outcome.node or 'unknown'}), after {after}",
    }[kind]


def _cancelled(outcome: Outcome) -> Failure:
    if _is_stuck(outcome):
        return _failure("dependency", "it waits for a job that failed, and will never start")
    if not outcome.node and (outcome.reason == STUCK or (outcome.reason in ("Dependency", "") and not outcome.by)):
        return _failure("dependency", "never started: the job that it waited for failed")
    by = f" by user {outcome.by}" if outcome.by else ""
    return _failure("cancelled", f"cancelled{by}{f' after {timedelta(seconds=outcome.seconds)}' if outcome.node else ''}")


def _killed(outcome: Outcome) -> Failure:
    if outcome.signal == WALLTIME_SIGNAL:  # it came before anything listened for it
        return _failure("time", _by_slurm("time", outcome))
    if outcome.signal == NO_LOG:
        where = f" on {outcome.node}" if outcome.node else ""
        return _failure("disk", f"Slurm could not write its log{where}: the folder is gone, full or not shared")
    try:
        named = signal.Signals(outcome.signal)
    except ValueError:
        return _failure("killed", f"killed by signal {outcome.signal}")
    hint = f": {HINTS[named]}" if named in HINTS else ""
    return _failure("killed", f"killed by {named.name}{hint}")


# ---------------------------------------------------------------- the log
def _last_attempt(log: str) -> str:
    """What a log says of the last attempt: jobs that are queued again append to theirs."""
    log = log.replace("\r", "\n")
    log = log[max(log.rfind("\n──── carabid "), 0) :]  # (trials.log_attempt)
    ended = [match.end() for match in AGAIN.finditer(log)]
    after = log[ended[-1] :] if ended else ""
    return after if any(line.strip() and not SLURMS_LINE.match(line) for line in after.splitlines()) else log


def _of_log(log: str) -> Failure | None:
    """What a log alone tells: Slurm's line of memory, else the last of what ends a job, else our message or a death."""
    if MEMORY_LINE.search(log):
        return _failure("oom", next(_slurms(line) for line in log.splitlines() if MEMORY_LINE.search(line)))
    ends = [(match.start(), kind) for kind, pattern in ENDS.items() for match in re.finditer(pattern, log)]
    position, kind = max(ends, default=(-1, "error"))
    if (begin := log.rfind(TRACEBACK)) > position:
        lines = log[begin:].splitlines()[1:]  # the error is the first line that is not indented, nor srun's own
        message = next((line for line in lines if line[:1].strip() and not SLURMS_LINE.match(line)), "a Python error")
        return _failure(_kind_in(message), _line(message), last_frame(log[begin:]))
    if position >= 0:
        line = _line_at(log, position)
        nodes = tuple(FAILED_NODE.findall(line)) if kind == "node" else ()
        return replace(_failure(kind, _slurms(line)), nodes=nodes)
    return _of_last_words(log)


def _of_last_words(log: str) -> Failure | None:
    found = [*re.finditer(rf"^carabid: (?!{PROGRESS})(.+)$", log, re.M), *DEATHS.finditer(log)]
    last = max(found, key=lambda match: match.start(), default=None)
    if last is None:
        return None
    if last.re is DEATHS:
        return _failure("killed", _slurms(_line_at(log, last.start(1))))
    return _failure(_kind_in(last[1]), _line(last[1]))


def _without_accounting(recorded: Failure | None, record: Mapping[str, Any] | None, log: str) -> Failure | None:
    """The record, unless the log says that a later attempt was killed."""
    if recorded is None and STOPPED.search(log[-LAST:]):
        return None
    logged = _of_log(log)
    if recorded is None or logged is None or record is None:
        return recorded or logged
    told = _line(str(record.get("message") or ""))
    is_later = logged.kind in ("oom", "time", "preempted", "node", "killed") and not (told and told in log)
    return logged if is_later else recorded


def _line_at(log: str, position: int) -> str:
    return _line(log[log.rfind("\n", 0, position) + 1 :])


def _slurms(line: str) -> str:
    """A line of Slurm's without what marks it as one."""
    return re.sub(r"^(slurmstepd|srun)[^:]*: (error: )?", "", line.strip()).strip("* ")


def _failure(kind: Kind, what: str, frame: str = "") -> Failure:
    return Failure(kind, f"{what} ({frame})" if frame else what, REMEDIES[kind])


def _line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip().rstrip(" :") for line in text.splitlines() if line.strip()), "")
