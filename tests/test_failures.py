"""Why a task failed: each class from each source that may know it, and sacct's lines. Pure; Slurm itself is asked in
test_failure_classes.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import MissingFeatures, OutOfTime, UserError, WorkError
from pipeline.launch.jobs.trials import recorded_failure
from pipeline.launch.scheduler import accounting
from pipeline.launch.scheduler.accounting import FIELDS, N_FIELDS, Outcome, outcomes
from pipeline.launch.watching.failures import KINDS, REMEDIES, Failure, classify, kind_of, last_frame
from tests.small import small_disk

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
TASK = Outcome("41_3", "carabid-x-1-train", "FAILED", 1, 0, 600, "n1", mem="4G", start=BEGAN)
TRACE = f"""Traceback (most recent call last):
  File "{PROJECT}/pipeline/stages/train.py", line 40, in run
    fit(run)
    ~~~^^^^^
  File "{PROJECT}/pipeline/training/loop.py", line 94, in fit_epoch
    loss = loss_of(batch)
  File "/opt/env/lib/python3.12/site-packages/torch/nn/modules/module.py", line 1750, in _call_impl
    return forward_call(*args)
RuntimeError: mat1 and mat2 shapes cannot be multiplied
"""
SAID = TRACE.splitlines()[-1]
ON = "slurmstepd-n1: error: *** JOB 41 ON n1 CANCELLED AT 2026-03-01T12:10:00"


def at(minute: int) -> str:
    return f"2026-03-01T12:{minute:02}:00+00:00"


def record(message: str = "the loss became nan", **more: Any) -> dict[str, Any]:
    return {"stage": "train", "message": message, "traceback": None, "written": at(5), "kind": "error", **more}


def named(failure: Failure | None) -> tuple[str, str] | None:
    return (failure.kind, failure.what) if failure else None


# ---------------------------------------------------------------- Slurm's word
BY_SLURM: list[tuple[dict[str, Any], str, str, str]] = [
    ({"state": "OUT_OF_MEMORY", "exit_code": 0, "signal": 125}, "", "oom", "more memory than it had on n1 (it asked for 4G)"),
    ({"state": "FAILED", "signal": 9}, "slurmstepd-n1: error: Exceeded job memory limit\n", "oom", "asked for 4G"),
    ({"state": "FAILED", "signal": 9}, "slurmstepd: error: Detected 1 oom_kill group in StepId=4.0.", "oom", "memory"),
    ({"state": "FAILED"}, "slurmstepd: error: Detected 2 oom-kill group(s) in step 4.0 cgroup.", "oom", "memory"),
    ({"state": "CANCELLED", "by": "0"}, "slurmstepd: error: Exceeded step memory limit at some point.", "oom", "memory"),
    ({"state": "FAILED", "signal": 9}, "", "killed", "killed by SIGKILL: often memory that nobody measured"),
    ({"state": "FAILED", "signal": 9}, "srun: error: n2: task 0: Killed\n", "killed", "killed by SIGKILL"),
    ({"state": "FAILED", "signal": 7}, "", "killed", "SIGBUS: often a full /dev/shm"),
    ({"state": "FAILED", "signal": 15}, "", "killed", "killed by SIGTERM"),
    ({"state": "FAILED", "signal": 99}, "", "killed", "killed by signal 99"),
    ({"state": "FAILED", "exit_code": 0, "signal": 53}, "", "disk", "could not write its log on n1"),
    ({"state": "FAILED", "signal": 6}, "what(): CUDA out of memory\ncarabid: CUDA out of memory", "gpu-oom", "CUDA"),
    ({"state": "TIMEOUT"}, f"{ON} DUE TO TIME LIMIT ***", "time", "its walltime was over, after 0:10:00"),
    ({"state": "DEADLINE"}, "", "time", "walltime"),
    ({"state": "FAILED", "signal": 12}, "", "time", "walltime"),
    ({"state": "FAILED"}, "carabid: SIGUSR2: stopping after this epoch, with a checkpoint\n", "time", "SIGUSR2"),
    ({"state": "PREEMPTED"}, "", "preempted", "another job took its place on n1, after 0:10:00"),
    ({"state": "NODE_FAIL", "node": "n2"}, "", "node", "its node failed (n2)"),
    ({"state": "BOOT_FAIL", "node": ""}, "", "node", "its node failed (unknown)"),
    ({"state": "CANCELLED", "by": "1000"}, f"{ON} ***", "cancelled", "cancelled by user 1000 after 0:10:00"),
    ({"state": "CANCELLED", "by": "0", "node": "", "reason": "Dependency"}, "", "cancelled", "cancelled by user 0"),
    ({"state": "CANCELLED", "node": "", "reason": "Dependency"}, "", "dependency", "the job that it waited for failed"),
    # Under load Slurm records that nobody cancelled a job which never began, and not that it had been waiting.
    ({"state": "CANCELLED", "node": ""}, "", "dependency", "the job that it waited for failed"),
    ({"state": "CANCELLED", "by": "1000", "node": ""}, "", "cancelled", "cancelled by user 1000"),
    ({"state": "CANCELLED"}, "", "cancelled", "cancelled after 0:10:00"),
    ({"state": "CANCELLED", "by": "0", "node": "", "reason": "DependencyNeverSatisfied"}, "", "dependency", "never started"),
    ({"state": "PENDING", "node": "", "reason": "DependencyNeverSatisfied"}, "", "dependency", "will never start"),
    ({"state": "FAILED"}, TRACE, "error", f"{SAID} (pipeline/training/loop.py:94 in fit_epoch)"),
    ({"state": "FAILED"}, "carabid: data.csv: no column mass\n", "error", "data.csv: no column mass"),
    ({"state": "FAILED", "exit_code": 2}, "carabid: lora.yaml:3: no such key\n", "data", "lora.yaml:3: no such key"),
    ({"state": "FAILED"}, "carabid: /scratch/x: No space left on device\n", "disk", "/scratch/x: No space left on device"),
    ({"state": "FAILED", "exit_code": 127}, "job: line 12: carabid: not found\nsrun: gone\n", "error",
     "exit status 127: job: line 12: carabid: not found"),
    ({"state": "FAILED", "exit_code": 3}, "", "error", "exit status 3: the log does not say why"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "log", "kind", "what"), BY_SLURM)
def test_slurms_word_and_the_log_name_the_class(changes: dict[str, Any], log: str, kind: str, what: str) -> None:
    failure = classify(None, replace(TASK, **changes), log)
    assert failure is not None
    assert failure.kind == kind and what in failure.what and "\n" not in failure.what
    assert failure.remedy == REMEDIES[failure.kind]


@pytest.mark.parametrize("state", ["COMPLETED", "RUNNING", "PENDING", "COMPLETING", "REQUEUED", "SOMETHING_NEW"])
def test_what_runs_waits_or_ended_well_has_not_failed(state: str) -> None:
    assert classify(None, replace(TASK, state=state), f"{ON} DUE TO PREEMPTION ***\nagain\n{TRACE}") is None


# ---------------------------------------------------------------- the trial's record
def chained(error: Exception, cause: BaseException) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


def torch_error(name: str, module: str, message: str) -> Exception:
    kind = type(name, (RuntimeError,), {"__module__": module})
    made = kind(message)
    assert isinstance(made, Exception)
    return made


ERRORS: list[tuple[Exception, str]] = [
    (MemoryError(), "oom"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "oom"),
    (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "oom"),
    (chained(WorkError("could not be loaded"), MemoryError()), "oom"),
    (torch_error("OutOfMemoryError", "torch", "tried to allocate 2 GiB"), "gpu-oom"),
    (torch_error("OutOfMemoryError", "torch.cuda", ""), "gpu-oom"),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "gpu-oom"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "gpu-oom"),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors"), "disk"),
    (OSError(errno.EDQUOT, "quota"), "disk"),
    (OSError(errno.EIO, "could not be written: Error while serializing: No space left on device (os error 28)"), "disk"),
    (chained(WorkError("could not be saved"), OSError(errno.ENOSPC, "full")), "disk"),
    (RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/3"), "disk"),
    (RuntimeError("basic_ios::clear: iostream error"), "disk"),  # torch.save onto a disk that fills up
    (RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 704 vs 598"), "disk"),
    (RuntimeError("[enforce fail at inline_container.cc:337] . file not found: archive/data.pkl"), "error"),
    (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "state.pt"), "disk"),
    (OSError("100000 requested and 12784 written"), "disk"),  # numpy
    (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), "disk"),  # Arrow
    (RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)"), "disk"),  # safetensors
    (OSError(errno.EACCES, "Permission denied"), "error"),
    (UserError("metadata.csv: row 3: the image cannot be read"), "data"),
    (OutOfTime("over"), "time"),
    (MissingFeatures("run carabid extract"), "dependency"),
    (WorkError("the loss became nan"), "error"),
    (ValueError("x"), "error"),
]


@pytest.mark.parametrize(("error", "kind"), ERRORS, ids=lambda value: f"{value!r}"[:50])
def test_an_error_names_its_class_in_the_record_that_it_leaves(error: Exception, kind: str, tmp_path: Path) -> None:
    trial = TrialDir(tmp_path)
    with pytest.raises(type(error)), recorded_failure(trial, "train"):
        raise error
    left = read_json(trial.failure)
    assert left["kind"] == kind_of(error) == kind
    assert (failure := classify(left, None, "")) and failure.kind == kind
    without = {name: value for name, value in left.items() if name != "kind"}  # as versions before wrote it
    if left["traceback"]:
        assert (failure := classify(without, None, "")) and failure.kind == kind


def test_an_error_that_was_overcome_does_not_name_the_class() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError:
            raise WorkError("something else") from None
    except WorkError as error:
        assert kind_of(error) == "error"


def test_a_ring_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert kind_of(first) == "error"


BEFORE = "2026-03-01T11:59:00+00:00"
RECORD, EARLIER = record(), record(written=BEFORE)
KILLED = replace(TASK, signal=9)
JOINED: list[tuple[str, Mapping[str, Any] | None, Outcome, str, tuple[str, str] | None]] = [
    ("of this attempt, the record wins", RECORD, KILLED, "", ("error", "the loss became nan")),
    ("also where Slurm knows only that it failed", RECORD, TASK, TRACE, ("error", "the loss became nan")),
    ("a later attempt was killed", EARLIER, KILLED, "",
     ("killed", "killed by SIGKILL: often memory that nobody measured")),
    ("a later attempt failed before it could remove it", EARLIER, TASK, TRACE,
     ("error", f"{SAID} (pipeline/training/loop.py:94 in fit_epoch)")),
    ("a later training found no features: why, the extraction left", record("bad image", kind="data", written=BEFORE), TASK,
     "carabid: these features are not there\n", ("data", "bad image")),
    ("a later attempt was cancelled before it began", EARLIER,
     replace(TASK, state="CANCELLED", node="", by="0"), "", ("error", "the loss became nan")),
    ("its evaluation was cancelled with it", EARLIER,
     replace(TASK, state="CANCELLED", node="", reason="Dependency"), "", ("error", "the loss became nan")),
    ("other trials of the task went on", RECORD, replace(TASK, state="RUNNING"), "", ("error", "the loss became nan")),
    ("it is being done again", EARLIER, replace(TASK, state="RUNNING"), "", None),
    ("other trials of the task ended well", EARLIER,
     replace(TASK, state="COMPLETED", exit_code=0), "", ("error", "the loss became nan")),
    ("times that are missing speak for the record", record(written="yesterday"), KILLED, "", ("error", "the loss became nan")),
]  # fmt: skip


@pytest.mark.parametrize(("left", "outcome", "log", "expected"), [c[1:] for c in JOINED], ids=[c[0] for c in JOINED])
def test_the_later_of_record_and_killed_attempt_counts(
    left: Mapping[str, Any] | None, outcome: Outcome, log: str, expected: tuple[str, str] | None
) -> None:
    assert named(classify(left, outcome, log)) == expected


# ---------------------------------------------------------------- without accounting
LOGS: list[tuple[str, str, str]] = [
    ("work\nslurmstepd-n1: error: StepId=4.0 exceeded memory limit (2 > 1), being killed\n"
     "slurmstepd-n1: error: Exceeded job memory limit\nsrun: error: n1: task 0: Killed\n", "oom", "StepId=4.0 exceeded"),
    ("srun: error: n1: task 0: Out Of Memory\n", "oom", "Out Of Memory"),
    (f"{ON} DUE TO TIME LIMIT ***\nsrun: error: n1: task 0: Terminated\n", "time", "DUE TO TIME LIMIT"),
    (f"{ON} DUE TO PREEMPTION ***\n", "preempted", "DUE TO PREEMPTION"),
    (f"{ON} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n", "node", "DUE TO NODE FAILURE"),
    ("epoch 1\nsrun: error: Node failure on n2\n", "node", "Node failure on n2"),
    (f"{ON} ***\nsrun: error: n1: task 0: Terminated\n", "cancelled", "CANCELLED AT"),
    ("srun: error: n1: task 0: Killed\nsrun: Force Terminated StepId=8.0\n", "killed", "n1: task 0: Killed"),
    ("slurm_script: line 4: 123 Segmentation fault      (core dumped) python3\n", "killed", "Segmentation fault"),
    ("epoch 1\nKilled\n", "killed", "Killed"),
    (TRACE, "error", "(pipeline/training/loop.py:94 in fit_epoch)"),
    (TRACE.replace(SAID, f"srun: error: n2: task 0: Exited with exit code 1\n{SAID}"), "error", SAID),
    (f"submitit ERROR (2026-03-01) - triggered an exception\n{TRACE.replace('RuntimeError', 'torch.OutOfMemoryError')}",
     "gpu-oom", "torch.OutOfMemoryError: mat1"),
    (TRACE.replace("RuntimeError", "numpy._core._exceptions._ArrayMemoryError"), "oom", "_ArrayMemoryError: mat1"),
    ("carabid: features of 3 trials\ncarabid: a.pt: Disk quota exceeded\n", "disk", "a.pt: Disk quota exceeded"),
    # What ended an attempt before is not what ended the last one.
    (f"{ON} DUE TO JOB REQUEUE ***\ntraining goes on\n{TRACE}", "error", "RuntimeError"),
    (f"{ON} DUE TO PREEMPTION ***\ntraining goes on\n{ON} ***\n", "cancelled", "CANCELLED AT"),
    (f"{ON} DUE TO PREEMPTION ***\ntraining goes on\nsrun: error: n1: task 0: Killed\n", "killed", "n1: task 0: Killed"),
    (f"Exceeded job memory limit\n{ON} DUE TO JOB REQUEUE ***\ngoes on\n{ON} DUE TO TIME LIMIT ***\n", "time", "TIME LIMIT"),
    (f"{TRACE}the other trials go on\n{ON} DUE TO TIME LIMIT ***\n", "time", "TIME LIMIT"),
    (f"{TRACE}{ON} DUE TO PREEMPTION ***\ntraining goes on\n{ON} DUE TO TIME LIMIT ***\n", "time", "TIME LIMIT"),
    (f"srun: error: Node failure on n2\ntraining goes on\ncarabid: x\n{ON} DUE TO PREEMPTION ***\nsrun: error: Terminated\n",
     "preempted", "DUE TO PREEMPTION"),
]  # fmt: skip


@pytest.mark.parametrize(("log", "kind", "what"), LOGS)
def test_without_accounting_the_log_names_the_class(log: str, kind: str, what: str) -> None:
    failure = classify(None, None, log)
    assert failure is not None and failure.kind == kind and what in failure.what
    assert "slurmstepd" not in failure.what and "srun" not in failure.what and "***" not in failure.what


@pytest.mark.parametrize(
    "log",
    [
        "carabid: SIGTERM: stopping after this epoch, with a checkpoint\n",
        "carabid: the walltime is near: shards that are done stay, the next attempt makes the others\n",
        "carabid: SIGUSR2: stopping after this epoch\nslurmstepd: *** CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***\n"
        "──── carabid train: seed=0 (Slurm job 41 on n1, attempt 2)\nepoch 4\n",
    ],
)
def test_what_is_said_while_all_goes_on_and_what_an_earlier_attempt_ended_with_is_no_failure(log: str) -> None:
    assert classify(None, None, log) is None


def test_without_accounting_a_record_gives_way_to_a_log_that_ends_otherwise() -> None:
    over = f"epoch 1\n{ON} DUE TO TIME LIMIT ***\n"
    assert (late := classify(RECORD, None, over)) and late.kind == "time"
    assert (told := classify(RECORD, None, f"carabid: the loss became nan\n{over}")) and told.kind == "error"
    assert (alone := classify(RECORD, None, "")) and alone.what == "the loss became nan"
    assert classify(None, None, "epoch 1\n") is None
    assert classify({}, None, "") is None


# ---------------------------------------------------------------- frames
def test_the_last_frame_is_the_innermost_of_ours_in_the_last_traceback() -> None:
    assert last_frame(TRACE) == "pipeline/training/loop.py:94 in fit_epoch"
    elsewhere = TRACE.replace(f"{PROJECT}/", "/scratch/me/submission-1/")  # a copy of the code, as of its submission
    assert last_frame(elsewhere) == "pipeline/training/loop.py:94 in fit_epoch"
    second = 'Traceback (most recent call last):\n  File "/usr/lib/python3.12/json/decoder.py", line 3, in decode\nE\n'
    assert last_frame(f"{TRACE}\nThe above exception was the direct cause of …:\n\n{second}") == "json/decoder.py:3 in decode"
    others = TRACE.replace("/pipeline/", "/site-packages/other/pipeline/our_")
    assert last_frame(others) == "torch/nn/modules/module.py:1750 in _call_impl"
    assert last_frame("no traceback") == ""


def test_the_last_frame_of_a_real_error_is_where_it_was_raised() -> None:
    try:
        read_json(PROJECT / "pyproject.toml")
    except ValueError as error:
        frame = last_frame("".join(traceback.format_exception(error)))
    assert frame.startswith("pipeline/disk/writing.py:") and frame.endswith(" in read_json")


# ---------------------------------------------------------------- anything
WORDS = st.sampled_from(
    [ON, TRACE, " DUE TO PREEMPTION ***", " ***", "\n", "Killed", "carabid: ", "oom-kill", '  File "', "\0", "\r"]
)
TEXT = st.lists(WORDS | st.text(max_size=20), max_size=8).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=2), max_leaves=3
)
RECORDS = st.none() | st.dictionaries(
    st.sampled_from(["stage", "kind", "message", "traceback", "written", "more"]), JSON | st.sampled_from([at(5), *KINDS])
)
OUTCOMES = st.none() | st.builds(
    Outcome,
    job=st.just("41"), name=st.just("x"), exit_code=st.integers(0, 255), signal=st.integers(0, 200),
    state=st.sampled_from([c[0]["state"] for c in BY_SLURM]) | st.text(max_size=9),
    seconds=st.integers(0, 10**9), node=st.sampled_from(["", "n1"]), by=st.sampled_from(["", "0"]),
    reason=st.sampled_from(["", "Dependency", "DependencyNeverSatisfied"]), start=st.none() | st.just(BEGAN),
)  # fmt: skip


@given(RECORDS, OUTCOMES, TEXT)
def test_classify_answers_whatever_it_is_given(left: Any, outcome: Outcome | None, log: str) -> None:
    failure = classify(left, outcome, log)
    assert failure is None or (failure.kind in KINDS and failure.remedy and "\n" not in failure.what)
    if outcome and outcome.state in ("OUT_OF_MEMORY", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "FAILED", "CANCELLED"):
        assert failure is not None


@given(TEXT)
def test_last_frame_is_one_line_of_anything(text: str) -> None:
    assert "\n" not in last_frame(text)


def test_every_class_has_a_remedy_that_names_a_command() -> None:
    assert set(REMEDIES) == set(KINDS)
    assert all("`carabid " in remedy for remedy in REMEDIES.values())
    assert all(f"--only {kind}" in remedy for kind, remedy in REMEDIES.items() if "--only" in remedy)


# ---------------------------------------------------------------- sacct's lines
def sacct_line(**values: str) -> str:
    usual = {"JobID": "41", "Submit": "100", "State": "COMPLETED", "ExitCode": "0:0", "DerivedExitCode": "0:0",
             "Start": "110", "ElapsedRaw": "60", "ReqMem": "4G", "NodeList": "n1",
             "Reason": "None", "JobName": "carabid-x-1-train"}  # fmt: skip
    assert set(usual) == set(FIELDS.split(",")) and len(usual) == N_FIELDS
    return "|".join({**usual, **values}[name] for name in FIELDS.split(","))


@pytest.fixture
def sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a sacct of this shell script before the real one; its arguments go to the file that is returned."""

    def install(script: str) -> Path:
        (tmp_path / "sacct").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/asked\n{script}\n')
        (tmp_path / "sacct").chmod(0o755)
        return tmp_path / "asked"

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return install


def told(sacct: Callable[[str], Path], *lines: str) -> list[Outcome]:
    text = "\n".join(lines)
    sacct(f"cat <<'END'\n{text}\nEND")
    found = outcomes(["carabid-x-1-train"], at(0))
    assert found is not None
    return found


def test_a_line_of_sacct_becomes_an_outcome(sacct: Callable[[str], Path]) -> None:
    line = sacct_line(JobID="41_3", State="CANCELLED by 4294967000", JobName="a|b")
    (found,) = told(sacct, line, "", "slurm says hello")
    assert found == Outcome("41_3", "a|b", "CANCELLED", 0, 0, 60, "n1", "", "4G", "4294967000", 110.0)


def test_whoever_cancelled_a_job_is_called_by_name(sacct: Callable[[str], Path]) -> None:
    (found,) = told(sacct, sacct_line(State=f"CANCELLED by {os.getuid()}"))
    assert found.by == subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


EXITS = [
    ("0:0", "0:0", (0, 0)), ("1:0", "0:0", (1, 0)), ("2:0", "2:0", (2, 0)), ("0:9", "0:0", (0, 9)), ("9:0", "0:9", (0, 9)),
    ("9:0", "0:0", (0, 9)), ("137:0", "0:0", (0, 9)), ("15:0", "0:15", (0, 15)), ("1:0", "0:9", (1, 9)), ("0:0", "0:9", (0, 0)),
    ("127:0", "0:0", (127, 0)), ("0:53", "0:0", (0, 53)), ("", "", (0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("own", "derived", "expected"), EXITS)
def test_a_signal_is_found_wherever_slurm_puts_it(
    own: str, derived: str, expected: tuple[int, int], sacct: Callable[[str], Path]
) -> None:
    (found,) = told(sacct, sacct_line(ExitCode=own, DerivedExitCode=derived))
    assert (found.exit_code, found.signal) == expected


def test_tasks_that_were_cancelled_before_they_began_are_told_apart(sacct: Callable[[str], Path]) -> None:
    lines = [
        sacct_line(JobID=job, State="CANCELLED by 0", Start="None", NodeList="None assigned")
        for job in ("41_[0,4-8:2%2]", "42_[7]")
    ]
    found = told(sacct, *lines)
    assert [(each.job, each.node, each.start) for each in found] == [(f"41_{i}", "", None) for i in (0, 4, 6, 8)] + [
        ("42_7", "", None)
    ]


def test_attempts_before_the_last_do_not_count_and_a_task_that_waits_again_is_left_out(sacct: Callable[[str], Path]) -> None:
    found = told(
        sacct,
        sacct_line(JobID="41_1", Submit="300", State="FAILED", ExitCode="1:0"),  # not in the order of time
        sacct_line(JobID="41_1", Submit="100", State="PREEMPTED"),
        sacct_line(JobID="41_1", Submit="200", State="REQUEUED"),
        sacct_line(JobID="41_2", Submit="100", State="NODE_FAIL"),
        sacct_line(JobID="41_2", Submit="200", State="PENDING", Start="Unknown", NodeList="None assigned"),
        sacct_line(JobID="41_[3-9]", State="PENDING", Start="Unknown", NodeList="None assigned"),
    )
    assert [(each.job, each.state) for each in found] == [("41_1", "FAILED")]


def test_many_names_are_asked_for_in_a_few_calls(sacct: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "WORDS_A_CALL", 2)
    asked = sacct("")
    assert outcomes([f"name{i}" for i in range(5)], "2026-03-01T12:00:00+00:00") == []
    lines = asked.read_text().splitlines()
    assert [line for line in lines if "--name=" in line] == ["--name=name0,name1", "--name=name2,name3", "--name=name4"]
    assert outcomes([], at(0)) == [] and asked.read_text().splitlines() == lines


def test_sacct_is_asked_in_its_own_time_zone(sacct: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setenv("TZ", "EST5")
        time.tzset()
        asked = sacct("")
        assert outcomes(["x"], "2026-03-01T12:00:00+00:00") == []
        assert "--starttime=2026-03-01T07:00:00" in asked.read_text().splitlines()
    time.tzset()


def test_where_accounting_is_disabled_or_absent_nothing_is_known_and_nothing_is_said(
    sacct: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sacct("echo Slurm accounting storage is disabled >&2; exit 1")
    assert outcomes(["x"], at(0)) is None
    monkeypatch.setenv("PATH", "")
    assert outcomes(["x"], at(0)) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo 'sacct: error: Problem talking' >&2; echo to the database >&2; exit 1", "Problem talking to the database"),
     ("exec sleep 60", "did not answer within 0.2 s")],
)  # fmt: skip
def test_a_sacct_that_fails_or_hangs_is_given_up_with_one_line(
    script: str, words: str, sacct: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accounting, "TIMEOUT", 0.2)
    sacct(script)
    assert outcomes(["x"], at(0)) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("carabid: sacct ") and words in line


def test_neither_module_loads_torch() -> None:
    modules = "pipeline.launch.watching.failures, pipeline.launch.scheduler.accounting"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


# ---------------------------------------------------------------- full disks
WRITERS: dict[str, str] = {
    "a checkpoint": "checkpoint.save_checkpoint(TrialDir(folder), 'x', model, torch.optim.SGD(model.parameters()), Progress())",
    "a model": "writing.write_tensors(folder / 'a.safetensors', dict(model.state_dict()), {})",
    "a table": "writing.write_table(folder / 'a.parquet', pandas.DataFrame({'a': numpy.random.rand(30_000)}))",
    "numbers": "numpy.ones(30_000).tofile(folder / 'a')",
    "a text": "writing.write_text(folder / 'a.txt', 'x' * 200_000)",
}
FILL = """
import resource, sys, numpy, pandas, torch
from pathlib import Path
from pipeline.disk import writing
from pipeline.disk.layout import TrialDir
from pipeline.launch.watching.failures import kind_of
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Progress
checkpoint.trained_state = lambda model: model.state_dict()
model, folder = torch.nn.Linear(100, 400), Path(sys.argv[1])
for size in map(int, sys.argv[3:]):
    if sys.argv[2] == "disk":
        (folder / "fill").write_bytes(b"1" * (204_800 - size))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    for work in WRITERS:
        try:
            exec(work)
        except Exception as error:
            print(size, kind_of(error), work[:30], type(error).__name__, error)
        else:
            print(size, "written", work[:30])
    (folder / "fill").unlink(missing_ok=True)
"""


@pytest.mark.jobs
@pytest.mark.parametrize("how", ["disk", "limit"])
def test_whatever_is_written_when_no_more_can_be_is_a_failure_of_the_disk(tmp_path: Path, how: str) -> None:
    """On a small disk that is really full, from the first byte or in the midst; and by a limit of the size of files."""
    sizes = ("0", "4096", "40960", "131072") if how == "disk" else ("131072", "40960", "4096", "100")
    with small_disk(tmp_path / "disk", "200k") as mounted:
        if how == "disk" and not mounted:
            pytest.skip("this user may not mount a small disk")
        code = FILL.replace("WRITERS", repr(list(WRITERS.values())))
        command = [sys.executable, "-c", code, str(tmp_path / "disk"), how, *sizes]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(sizes) * len(WRITERS), done.stderr
    assert {line.split()[1] for line in lines} == {"disk"}, done.stdout
