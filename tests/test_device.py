"""Which device a job computes on: a GPU that was given and cannot be used stops the job."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import torch

from pipeline.device import GPU_VARIABLES, choose_device, make_deterministic, set_threads
from pipeline.errors import UserError, WorkError


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose torch finds no GPU, in no job."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in (*GPU_VARIABLES, "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variable", GPU_VARIABLES)
@pytest.mark.parametrize("gpus", ["0", "2,3", "GPU-8a56a4bc", "0-1"])
def test_a_job_that_was_given_a_gpu_which_torch_cannot_use_stops_and_says_why(
    monkeypatch: pytest.MonkeyPatch, variable: str, gpus: str
) -> None:
    monkeypatch.setenv(variable, gpus)
    with pytest.raises(WorkError) as caught:
        choose_device("auto")
    message = str(caught.value)
    assert f"{variable}={gpus}" in message and torch.__version__ in message
    assert "nvidia-smi" in message and "device=cpu" in message


def test_each_process_of_a_training_takes_a_gpu_of_its_own_and_too_few_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert [choose_device("auto", local).type for local in (0, 1)] == ["cuda", "cuda"] and taken == [1]
    with pytest.raises(WorkError, match=r"3 on this node, which has 2: ask for 3 \(sbatch --gpus-per-node=3\)"):
        choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # srun shows each process its own
    assert choose_device("auto", 1).type == "cuda" and taken == [1]


@pytest.mark.parametrize("given", [{"OMP_NUM_THREADS": "4"}, {"SLURM_CPUS_PER_TASK": "8"}])
def test_processes_of_one_training_share_the_cpus_of_the_job(
    monkeypatch: pytest.MonkeyPatch, threads: None, given: dict[str, str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert set_threads(shared_by=2) == torch.get_num_threads() == 4


@pytest.mark.parametrize("device", ["gpu", "cuda:0", "", "CPU"])
def test_a_word_that_is_no_device_is_refused_with_those_there_are(device: str) -> None:
    with pytest.raises(UserError, match=f"^there is no device {device}: choose auto, cuda or cpu"):
        choose_device(device)


def test_a_gpu_that_was_asked_for_and_is_not_there_stops() -> None:
    with pytest.raises(WorkError, match="device is cuda, but torch"):
        choose_device("cuda")


@pytest.mark.parametrize("nothing", ["", "-1", "NoDevFiles"])
def test_variables_that_hide_every_gpu_give_none(monkeypatch: pytest.MonkeyPatch, nothing: str) -> None:
    for name in GPU_VARIABLES:
        monkeypatch.setenv(name, nothing)
    assert choose_device("auto").type == "cpu"


def test_auto_is_the_cpu_where_no_gpu_was_given() -> None:
    assert choose_device("auto").type == "cpu"


def test_the_cpu_can_be_chosen_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_GPUS", "0")
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_works_is_used(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(device).type == "cuda"


@pytest.mark.usefixtures("threads")
def test_a_job_uses_the_cpus_that_slurm_gave_it_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert set_threads() == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert set_threads() == torch.get_num_threads() == 2


@pytest.mark.usefixtures("threads")
def test_of_openmps_numbers_for_nested_levels_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert set_threads() == torch.get_num_threads() == 3


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("text", ["abc", "0", "-2", "1.5", ",2", "1e3", "٣", "9" * 5000])
@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"])
def test_what_is_no_number_of_threads_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    before = torch.get_num_threads()
    with pytest.raises(UserError, match=f"^{variable}={re.escape(text[:200])}.* is no number of threads"):
        set_threads()
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("threads")
def test_outside_a_job_threads_are_the_cpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {4, 7, 9})
    assert set_threads() == 3


def test_deterministic_means_that_torch_refuses_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")
    finally:
        torch.use_deterministic_algorithms(before)
