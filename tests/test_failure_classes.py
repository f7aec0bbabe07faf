"""Every class of failure, provoked for real on a private Slurm and named from what it leaves: the trial's record, Slurm's
accounting, the log. All are provoked at once, and waited for together."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.layout import PROJECT
from pipeline.disk.provenance import now
from pipeline.launch.scheduler.accounting import Outcome, outcomes
from pipeline.launch.watching.failures import KINDS, classify
from tests.cluster.cluster import Cluster
from tests.conftest import Assets, carabid, slurm_environ
from tests.small import image_files, make_small, small_disk
from tests.test_slurm import NO_GPU, SMALL, wait_for_all

pytestmark = pytest.mark.slurm
WAYS = ("", "gpu-oom", "oom", "error", "killed", "cancelled")
"""How the trainings of one array go, by index (breaking/sitecustomize.py)."""
RESOURCES = (*NO_GPU, *(each for each in SMALL if "train.mem" not in each), "resources.train.mem=2300M")
"""Twice what a training takes: while one starts `git`, Slurm counts the memory of both."""
ALLOCATE = "import time; held = b'1' * 300_000_000; time.sleep(60)"
DIE = "import os; os.kill(os.getpid(), 9)"
BROKEN = "import json; json.loads('{')"
SLEEP = "import time; print('asleep', flush=True); time.sleep(600)"


@dataclass(frozen=True)
class Left:
    """What a failed task leaves behind."""

    record: dict[str, Any] | None
    outcome: Outcome | None
    log: str


@dataclass(frozen=True)
class Job:
    """A job that fails: its id (with the index in its array) and name, its log's name, its trial's folder.

    Of a trial whose name is not known, what matches it alone under the root.
    """

    id: str
    name: str
    log: str
    trial: str = "no trial"

    def left(self, root: Path, found: list[Outcome] | None) -> Left:
        texts = [path.read_text() for path in root.rglob(self.log)]
        record = next((json.loads(path.read_text()) for path in root.glob(f"{self.trial}/failure.json")), None)
        return Left(record, next((o for o in found or [] if o.job == self.id), None), "".join(texts))


class Provoker:
    """Queues jobs that fail, and sees to it that they do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs: dict[str, Job] = {}

    def left(self, found: list[Outcome] | None) -> dict[str, Left]:
        return {kind: job.left(self.root, found) for kind, job in self.jobs.items()}

    def wait_until_asleep(self, kind: str) -> None:
        wait_until(lambda: "asleep" in self.left(None)[kind].log, f"{kind}: asleep")

    def python(self, kind: str, code: str, *options: str) -> str:
        """A job of one line of Python."""
        return self.sbatch(kind, *options, f'--wrap=srun python3 -c "{code}"')

    def sbatch(self, kind: str, *arguments: str, trial: str = "no trial") -> str:
        """A job of our own making, or a script of jobs/; what `trial` matches under the root is its trial's folder."""
        command = ["sbatch", "--parsable", f"--job-name={kind}", "--output=%x-%j.out", "--gpus-per-node=0", "--mem=100M",
                   "--cpus-per-task=1", "--open-mode=append", *arguments]  # fmt: skip
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        job = done.stdout.strip()
        self.jobs[kind] = Job(job, kind, f"{kind}-{job}.out", trial)
        return job

    def submit(self, *overrides: str, ways: tuple[str, ...], evaluation: str | None = None) -> dict[str, str]:
        """`carabid submit`: the trainings of an array go different ways; returns stage → job."""
        config = "configs/beetles/frozen.yaml"
        done = carabid("submit", config, *overrides, *RESOURCES, "--pack", "1", root=self.root)
        stages = dict(re.findall(r"^(\w+) +job (\d+)$", done.stdout, re.M))
        manifest = json.loads(Path(re.findall(r"submission (\S+)$", done.stdout, re.M)[0]).read_text())
        folder = f"trained/{manifest['common']['experiment']}"
        for index, (way, trial) in enumerate(zip(ways, manifest["trials"], strict=True)):
            job = f"{stages['train']}_{index}" if len(ways) > 1 else stages["train"]
            self.jobs[way] = Job(job, queued_name(stages["train"]), f"{job}_0_log.out", f"{folder}/{trial['name']}")
        if evaluation:
            job = f"{stages['evaluate']}_{ways.index(evaluation)}"
            self.jobs["dependency"] = Job(job, queued_name(stages["evaluate"]), f"{job}_0_log.out")
        return stages


def queued_name(job: str) -> str:
    return ask("squeue", "--noheader", f"--jobs={job}", "--format=%j").split()[0]


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def wait_until(reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert time.monotonic() < deadline, f"{what}: never reached\n{ask('squeue')}"
        time.sleep(0.2)


def wait_for(job: str, *states: str) -> None:
    """Until a job, or a task of an array, that is in the queue has one of these states."""
    command = ("squeue", "--noheader", f"--jobs={job}", "--format=%T %r")
    wait_until(lambda: any(state in ask(*command) for state in states), f"job {job}: {' or '.join(states)}")


@pytest.fixture(scope="module")
def left(
    cluster: Cluster, assets: Assets, generated: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Left]]:
    """Class → what a failure of this class has left."""
    root, began = tmp_path_factory.mktemp("failures"), now()
    slurm = cluster
    with pytest.MonkeyPatch.context() as patch, small_disk(root / "disk") as has_disk:
        for name, value in {**slurm_environ(cluster), "CARABID_ROOT": str(root), "PYTHONPATH": breaking()}.items():
            patch.setenv(name, value)
        provoker = Provoker(root)
        queue_all(provoker, patch, assets, generated, has_disk)
        stuck = see_to_it(provoker, slurm)
        found = outcomes({job.name for job in provoker.jobs.values()}, began)
        assert found is not None
        yield {**provoker.left(found), "stuck": Left(None, stuck, "")}


def breaking() -> str:
    """PYTHONPATH of jobs whose trainings go the ways that BREAK names."""
    return os.pathsep.join([str(PROJECT / "tests" / "breaking"), str(PROJECT)])


def queue_all(provoker: Provoker, patch: pytest.MonkeyPatch, assets: Assets, generated: Path, has_disk: bool) -> None:
    overrides = (*assets.on_pixels(), "train.epochs=2")
    script = (str(PROJECT / "jobs" / "train.sh"), "configs/beetles/frozen.yaml", *overrides)
    provoker.python("node", SLEEP, "--nodelist=n2", "--exclusive", "--no-requeue")
    provoker.python("preempted", SLEEP, "--nodelist=n1", "--partition=scavenge", "--cpus-per-task=2")
    patch.setenv("BREAK", "time")
    # One minute is the shortest walltime there is, and the warning would come before its first second.
    provoker.sbatch("time", "--time=1", "--signal=CONT@1", "--nodelist=n1", "--mem=4G", *script, "experiment=late")
    push_aside(provoker)
    patch.setenv("BREAK", ",".join(WAYS))
    seeds = f"seed={','.join(str(seed) for seed in range(len(WAYS)))}"
    provoker.submit(*overrides, seeds, ways=WAYS, evaluation="error")
    patch.delenv("BREAK")
    table = make_small(generated, provoker.root / "data")
    image_files(table)[7].write_bytes(b"no image")
    others = (each for each in overrides if not each.startswith("data.source"))
    provoker.submit(*others, f"data.source={table}", "experiment=bad", "--no-check", ways=("data",))
    if has_disk:
        trained = provoker.root / "disk"
        provoker.sbatch("disk", "--mem=4G", *script, f"paths.trained={trained}", trial="disk/beetles-frozen/*")
    provoker.sbatch("stuck", f"--dependency=afterok:{provoker.jobs['error'].id}", "--wrap=true")


def push_aside(provoker: Provoker) -> None:
    """A job in high takes CPUs from two others: one ends, one is queued again and then ends well."""
    once = '[ -n "$SLURM_RESTART_COUNT" ] || { echo asleep; sleep 600; }'
    provoker.sbatch("again", "--nodelist=n1", "--partition=low", f"--wrap={once}")
    for kind in ("preempted", "again"):
        provoker.wait_until_asleep(kind)
    provoker.sbatch("high", "--nodelist=n1", "--partition=high", "--cpus-per-task=3", "--wrap=true")


def see_to_it(provoker: Provoker, slurm: Cluster) -> Outcome:
    """Kill a node, and cancel what waits to be cancelled, until all have ended; returns what squeue says of a stuck job."""
    jobs = provoker.jobs
    provoker.wait_until_asleep("node")
    slurm.stop_node("n2")
    wait_for(jobs["cancelled"].id, "RUNNING")
    subprocess.run(["scancel", jobs["cancelled"].id], check=True)
    wait_until(lambda: jobs["node"].id not in ask("squeue", "--noheader", "--format=%A").split(), "node failure")
    slurm.start_node("n2")
    wait_for(jobs["stuck"].id, "DependencyNeverSatisfied")
    state, reason = ask("squeue", "--noheader", f"--jobs={jobs['stuck'].id}", "--format=%T %r").split()
    subprocess.run(["scancel", jobs["stuck"].id], check=True)
    wait_for_all()
    return Outcome(jobs["stuck"].id, "stuck", state, 0, 0, 0, "", reason)


# ---------------------------------------------------------------- what they are called
NAMED = {
    "oom": "it used more memory than it had on n",
    "gpu-oom": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. (pipeline/training/learner.py:",
    "time": "its walltime was over, after 0:01:",
    "preempted": "another job took its place on n1, after {after}",
    "node": "its node failed (n2), after {after}",
    "error": "ZeroDivisionError: division by zero (pipeline/training/learner.py:",
    "data": "data/metadata.csv, line 9: the image in column file_path cannot be read",
    "disk": "No space left on device",
    "dependency": "never started: the job that it waited for failed",
    "cancelled": "cancelled by user",
    "killed": "killed by SIGKILL",
}
UNSEEN = ("dependency", "cancelled")
"""What leaves no record and, where a job was still starting, no log."""


def test_every_class_is_provoked() -> None:
    assert set(NAMED) == set(KINDS)


@pytest.mark.parametrize("kind", NAMED)
def test_what_is_left_names_the_class(kind: str, left: dict[str, Left]) -> None:
    seen = found(kind, left)
    failure = classify(seen.record, seen.outcome, seen.log)
    words = NAMED[kind].format(after=timedelta(seconds=seen.outcome.seconds if seen.outcome else 0))
    assert failure is not None and failure.kind == kind and words in failure.what, (failure, seen)


@pytest.mark.parametrize("kind", [kind for kind in NAMED if kind not in UNSEEN])
def test_record_and_log_alone_name_the_class(kind: str, left: dict[str, Left]) -> None:
    seen = found(kind, left)
    failure = classify(seen.record, None, seen.log)
    assert failure is not None and failure.kind == kind, (failure, seen)


def found(kind: str, left: dict[str, Left]) -> Left:
    if kind == "disk" and kind not in left:
        pytest.skip("this user may not mount a small disk")
    return left[kind]


def test_a_job_that_waits_for_what_will_never_come_is_told_from_one_that_waits(left: dict[str, Left]) -> None:
    stuck = left["stuck"].outcome
    assert stuck is not None and (failure := classify(None, stuck, "")) and failure.kind == "dependency"
    assert classify(None, replace(stuck, reason="Dependency"), "") is None


def test_a_job_that_was_pushed_aside_and_ran_again_has_not_failed(left: dict[str, Left]) -> None:
    seen = left["again"]
    assert seen.outcome and seen.outcome.state == "COMPLETED"
    assert "DUE TO PREEMPTION" in seen.log and classify(seen.record, seen.outcome, seen.log) is None


def test_the_training_that_went_well_beside_them_has_not_failed(left: dict[str, Left]) -> None:
    assert left[""].record is None and classify(None, left[""].outcome, left[""].log) is None


def test_a_training_of_this_machine_that_was_told_to_stop_has_not_failed() -> None:
    log = "epoch 3  val/loss 0.5\ncarabid: trained/e/t: told to stop; the checkpoint is written, run it again to go on\n"
    assert classify(None, None, log) is None
    assert classify(None, None, f"{log}Traceback (most recent call last):\n  …\nRuntimeError: no\n") is not None


def test_without_accounting_logs_tell_what_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm = Cluster(Path(tempfile.gettempdir()) / f"carabid-bare-{os.getpid()}", accounting=False)
    if missing := slurm.missing_packages():
        pytest.skip(f"Slurm's packages are not installed: {', '.join(missing)}")
    slurm.up()
    try:
        for name, value in {**slurm_environ(slurm), "CARABID_ROOT": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        left = fail_without_accounting(Provoker(tmp_path))
        assert outcomes(list(left), now()) is None and capfd.readouterr() == ("", "")
    finally:
        slurm.down()
    named = {kind: classify(each.record, None, each.log) for kind, each in left.items()}
    assert {kind: failure.kind for kind, failure in named.items() if failure} == {kind: kind for kind in named}
    assert (error := named["error"]) and "json.decoder.JSONDecodeError" in error.what and "in raw_decode" in error.what


def fail_without_accounting(provoker: Provoker) -> dict[str, Left]:
    options = ("--nodelist=n1", "--partition=scavenge")
    provoker.python("preempted", SLEEP, *options, "--exclusive")
    provoker.python("cancelled", SLEEP, "--nodelist=n2")
    for kind, code in (("oom", ALLOCATE), ("killed", DIE), ("error", BROKEN)):
        provoker.python(kind, code, "--nodelist=n2")
    for kind in ("preempted", "cancelled"):
        provoker.wait_until_asleep(kind)
    provoker.python("high", "", "--nodelist=n1", "--partition=high", "--exclusive")
    subprocess.run(["scancel", provoker.jobs["cancelled"].id], check=True)
    wait_for_all()
    return {kind: each for kind, each in provoker.left(None).items() if kind != "high"}
