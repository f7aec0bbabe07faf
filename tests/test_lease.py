"""Leases: one holder at a time, through kills, suspensions and races. Real processes, on a real file system."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk import lease as lease_module
from pipeline.disk.lease import Lease, owner

SECONDS = 3.0
"""A beat every half second: a busy machine may come late by seconds before a living holder counts as dead."""

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.disk.lease import Lease
with Lease(Path(sys.argv[1]), float(sys.argv[2])).hold() as held:
    print("held", flush=True)
    for line in sys.stdin:
        print(held.still_mine(), flush=True)
"""

WAITER = """
import sys, time
from pathlib import Path
from pipeline.disk.lease import Lease
done = Path(sys.argv[3])
with Lease(Path(sys.argv[1]), float(sys.argv[2])).hold(done.exists) as held:
    print(bool(held), flush=True)
    if held:
        time.sleep(2 * float(sys.argv[2]))
        done.touch()
        assert held.still_mine()
"""


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process with pipes, killed at the end whatever happens."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe:
                pipe.close()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline().strip()


def ask(child: subprocess.Popen[str]) -> str:
    """What the holder's `still_mine` says now."""
    assert child.stdin
    child.stdin.write("\n")
    child.stdin.flush()
    return line(child)


def test_a_lease_is_held_named_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    assert owner(path) is None
    with Lease(path, SECONDS).hold() as held:
        assert held and held.still_mine()
        named = owner(path)
        assert named and named["host"] and named["pid"]
    assert owner(path) is None
    began = time.monotonic()
    with Lease(path, 600).hold() as again:
        assert again
    assert time.monotonic() - began < 60, "a released lease must be free at once, not after it expires"


OWNER = {"beat": "1", "host": "n1", "pid": 1, "space": "", "job": "", "since": "", "id": ""}


@pytest.mark.parametrize(
    "content",
    ["[]", "5", '"x"', "{}", '{"beat": 5}', '{"beat": "1"}', "[" * 100_000]
    + [json.dumps(OWNER | odd) for odd in ({"beat": 5}, {"pid": "x"}, {"pid": 2**70}, {"pid": 0}, {"host": None}, {"job": []})],
)
def test_what_no_owner_has_written_is_held_by_nobody_known_and_outlived(tmp_path: Path, content: str) -> None:
    path = tmp_path / "work.lease"
    path.mkdir()
    (path / "000001").write_text(json.dumps(OWNER))
    assert owner(path)
    (path / "000001").write_text(content)
    assert not owner(path)
    with Lease(path, 0.1).hold() as held:
        assert held


@pytest.mark.parametrize("spoilt", [b"\x9c", b"\xcb\x28", b"\xff\xfe\0"])
def test_bytes_that_are_no_text_are_of_nobody_known_or_in_a_name(tmp_path: Path, spoilt: bytes) -> None:
    path, whole = tmp_path / "work.lease", json.dumps(OWNER).encode()
    path.mkdir()
    in_name = whole.replace(b"n1", b"n1" + spoilt.strip(b"\0"))
    for content, is_known in ((spoilt, False), (spoilt + whole, False), (in_name, True)):
        (path / "000001").write_bytes(content)
        assert (owner(path) is not None) == is_known
    with Lease(path, 0.1).hold() as held:
        assert held


def test_a_lease_is_given_back_when_the_work_raises(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    with pytest.raises(RuntimeError), Lease(path, 60).hold():
        raise RuntimeError
    assert owner(path) is None


def test_nothing_is_held_when_the_work_is_already_done(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    with Lease(path, SECONDS).hold(lambda: True) as held:
        assert not held and not held.still_mine()
    assert not path.exists()


def test_work_finished_between_the_check_and_the_lease_is_not_done_again(tmp_path: Path) -> None:
    answers = iter([False, True])
    with Lease(tmp_path / "work.lease", 60).hold(lambda: next(answers)) as held:
        assert not held
    assert owner(tmp_path / "work.lease") is None


def test_a_killed_holders_lease_goes_to_exactly_one_of_two_waiters(tmp_path: Path) -> None:
    path, done = tmp_path / "work.lease", tmp_path / "done"
    with process(HOLDER, path, SECONDS) as holder:
        assert line(holder) == "held"
        with process(WAITER, path, SECONDS, done) as one, process(WAITER, path, SECONDS, done) as other:
            holder.send_signal(signal.SIGKILL)
            assert sorted([line(one), line(other)]) == ["False", "True"]
            assert one.wait(10) == 0 and other.wait(10) == 0
            assert one.stderr and f"process {holder.pid}" in one.stderr.read(), "a waiter must say for whom it waits"


def test_a_holder_that_is_gone_from_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    with process(HOLDER, tmp_path / "lease", 600) as holder:
        assert line(holder) == "held"
        holder.kill()
        holder.wait()
        started = time.monotonic()
        with Lease(tmp_path / "lease", 600).hold() as held:
            assert held and time.monotonic() - started < 60


def test_a_live_holders_lease_is_not_taken(tmp_path: Path) -> None:
    path, done = tmp_path / "work.lease", tmp_path / "done"
    with process(HOLDER, path, SECONDS) as holder:
        assert line(holder) == "held"
        with process(WAITER, path, SECONDS, done) as waiter:
            time.sleep(2.5 * SECONDS)
            assert waiter.poll() is None and not done.exists() and ask(holder) == "True"
            assert holder.stdin
            holder.stdin.close()
            assert line(waiter) == "True"


def test_a_suspended_holder_notices_that_it_lost_the_lease_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    with process(HOLDER, path, SECONDS) as holder:
        assert line(holder) == "held" and ask(holder) == "True"
        holder.send_signal(signal.SIGSTOP)
        with Lease(path, SECONDS).hold() as held:
            assert held
            holder.send_signal(signal.SIGCONT)
            assert ask(holder) == "False"
            time.sleep(SECONDS)  # the old holder's beats go on
            assert holder.stdin
            holder.stdin.close()
            assert holder.wait(10) == 0
            assert held.still_mine(), "the old holder's release must not release the new holder's lease"
            named = owner(path)
            assert named and named["pid"] != holder.pid


def test_a_holder_that_died_before_writing_its_name_is_outlived(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    path.mkdir()
    (path / "000001").touch()
    with Lease(path, 0.3).hold() as held:
        assert held


def test_many_contenders_are_never_inside_together(tmp_path: Path) -> None:
    inside, most, entered = 0, 0, 0

    def contend() -> None:
        nonlocal inside, most, entered
        lease = Lease(tmp_path / "work.lease", 10)
        lease.pause = 0.01
        for _ in range(5):
            with lease.hold() as held:
                inside += 1
                most, entered = max(most, inside), entered + 1
                time.sleep(0.002)
                assert held.still_mine()
                inside -= 1

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, entered) == (1, 30)
    assert len(list((tmp_path / "work.lease").iterdir())) == 1, "outbid files are deleted"


def test_a_claim_that_comes_too_late_fails_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    path.mkdir()
    (path / "000003").write_text("{}")
    assert Lease(path, SECONDS)._claim(2) is None
    assert Lease(path, SECONDS)._claim(3) is None
    assert [p.name for p in path.iterdir()] == ["000003"]


@pytest.mark.parametrize(("step", "nth"), [("mkdir", 1), ("open", 1), ("listdir", 1), ("listdir", 2)])
def test_a_claim_survives_that_the_finisher_deletes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, nth: int
) -> None:
    """The folder vanishes just before one of the claim's steps; the waiter looks again and finds the work done."""
    path, done = tmp_path / "work.lease", tmp_path / "done"
    path.mkdir()
    lease = Lease(path, 60)
    lease.pause = 0.01
    claim, real, calls = lease._claim, getattr(os, step), []

    def finish_before(*arguments: Any) -> Any:
        calls.append(step)
        if len(calls) == nth:
            monkeypatch.setattr(os, step, real)
            done.touch()
            shutil.rmtree(path)
        return real(*arguments)

    def watched(number: int) -> Any:
        monkeypatch.setattr(lease, "_claim", claim)
        monkeypatch.setattr(os, step, finish_before)
        return claim(number)

    monkeypatch.setattr(lease, "_claim", watched)
    with lease.hold(done.exists) as held:
        assert not held and not held.still_mine()
    assert len(calls) == nth and owner(path) is None


def test_a_holder_whose_folder_was_deleted_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "work.lease"
    with Lease(path, 60).hold() as held:
        shutil.rmtree(path)
        assert held and not held.still_mine()
    assert not path.exists()


def test_many_contenders_end_well_though_each_of_them_deletes_the_folder_at_the_end(tmp_path: Path) -> None:
    """As at the end of training: whoever held the lease, and whoever waited for it, removes what is left of it."""
    path, done, worked, ended = tmp_path / "work.lease", tmp_path / "done", [0], [0]

    def contend() -> None:
        lease = Lease(path, 10)
        lease.pause = 0.001
        with lease.hold(done.exists) as held:
            if held:
                worked[0] += 1
                time.sleep(0.005)
                done.touch()
        shutil.rmtree(path, ignore_errors=True)
        ended[0] += 1

    for turn in range(1, 6):
        threads = [threading.Thread(target=contend) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (worked[0], ended[0]) == (turn, 8 * turn)
        done.unlink()


def test_a_waiter_that_was_suspended_itself_does_not_call_the_owner_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lease = Lease(tmp_path / "work.lease", 60.0)
    watch = lease_module._Watch(lease)
    content = '{"beat": "1", "pid": 1, "host": "a", "job": "", "since": "now"}'
    assert not watch.may_claim(1, content)
    now += 3600
    assert not watch.may_claim(1, content)
    for _ in range(12):
        now += lease.pause
        claimed = watch.may_claim(1, content)
    assert claimed, "an hour awake without a beat is death"
