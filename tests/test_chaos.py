"""The short form of the chaos test: a grid on a real Slurm that is disturbed in every way once. (`make chaos`: the long form.)"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests import chaos
from tests.cluster.cluster import Cluster
from tests.conftest import Assets


@pytest.mark.long
@pytest.mark.slurm
def test_a_disturbed_grid_ends_with_the_results_of_an_undisturbed_one(assets: Assets, cluster: Cluster, environ: Path) -> None:
    # With this seed the shard is cut last: trainings that begin after that can only fail, and are disturbed for nothing.
    n, seed = len(chaos.DISTURBANCES), 179
    report = chaos.run(chaos.Game(cluster, assets, environ, n, seed, epochs=30, pause=(1, 6), patient=True))
    assert not report.problems, str(report)
    left_out = {why.partition(":")[0] for why in report.left_out}
    assert {kind for kind, _ in report.hits} == chaos.DISTURBANCES.keys() - left_out, str(report)


@pytest.mark.slurm
def test_a_node_can_lose_its_power_and_come_back(cluster: Cluster, environ: Path) -> None:
    command = ["sbatch", "--parsable", "--nodelist=n2", "--output=/dev/null", "--wrap=sleep 600"]
    job = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    deadline = time.monotonic() + 60
    while not cluster.processes_of(job):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    cluster.stop_node("n2")
    assert not cluster.is_up() and cluster.processes_of(job)
    cluster.start_node("n2")
    assert cluster.is_up() and cluster.processes_of(job)
    cluster.stop_node("n2", power_cut=True)
    assert not cluster.processes_of(job)
    subprocess.run(["scancel", job], check=True)
    cluster.start_node("n2")
    assert cluster.is_up()


def test_a_small_disk_can_be_filled_and_is_gone_afterwards(tmp_path: Path) -> None:
    with chaos.small_disk(tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("this machine permits no mount")
        assert disk.is_mount()
    assert not (tmp_path / "disk").is_mount()


def test_results_that_differ_in_a_byte_or_are_missing_are_reported() -> None:
    expected = {"a": b"1", "b": b"2", "c": b"3"}
    found = {"a": b"1", "b": b"2 "}
    assert [line.partition(":")[0] for line in chaos.differences(expected, found)] == ["b", "c"]


def test_what_differs_from_job_to_job_is_left_out_of_the_errors_of_a_log() -> None:
    log = "epoch 1\ncarabid: /some/where/seed=3: told to stop\n  File x\nOSError: [Errno 28] No space left on device\n"
    assert chaos.last_words(log) == {"carabid: … told to stop": 1, "OSError: [Errno #] No space left on device": 1}
