"""Which device a job computes on, with how many threads, and how it is made deterministic."""

import os
import platform
import re

import torch
from jaxtyping import Shaped

from pipeline.errors import UserError, WorkError

DEVICES = ("auto", "cuda", "cpu")
# A job knows from these that Slurm (or its user) gave it a GPU: lists of device numbers.
GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
NO_GPU = ("", "-1", "NoDevFiles")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")


def choose_device(device: str, local: int = 0) -> torch.device:
    """The device for `device` = auto, cuda or cpu, of a process that is number `local` of those of one training on this node: a
    GPU each.

    Raises UserError for another word, and WorkError if a GPU was asked for, or given to this job, and torch cannot use
    it: a job must not spend a GPU's hours computing on the CPU beside it.
    """
    if device not in DEVICES:
        raise UserError(f"there is no device {device}: choose {', '.join(DEVICES[:-1])} or {DEVICES[-1]}.")
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        _take_gpu(local)
        return torch.device("cuda")
    given = [f"{name}={os.environ[name]}" for name in GPU_VARIABLES if os.environ.get(name, "") not in NO_GPU]
    if device == "cuda" or given:
        cause = "device is cuda" if device == "cuda" else f"this job was given a GPU ({', '.join(given)})"
        raise WorkError(
            f"{cause}, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use one. Check `nvidia-smi` on the "
            "node, and that torch's CUDA is not newer than the driver's. To compute on the CPU, set device=cpu and ask for "
            "no GPU (sbatch --gpus-per-node=0)."
        )
    return torch.device("cpu")


def _take_gpu(local: int) -> None:
    """Let `cuda` be this process's GPU. (srun may show each of several processes one GPU alone, its own.)"""
    sees_its_own = torch.cuda.device_count() == 1 and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if local > 0 and not sees_its_own:
        check_gpus(local + 1)
        torch.cuda.set_device(local)


def check_gpus(n: int) -> None:
    """Raises WorkError where `n` processes on this node do not find a GPU each."""
    if (found := torch.cuda.device_count()) < n:
        raise WorkError(
            f"the processes of a training (train.processes) need a GPU each, {n} on this node, which has {found}: ask for {n} "
            f"(sbatch --gpus-per-node={n}), or set train.processes={found}"
        )


def gpu_name(device: torch.device) -> str | None:
    """The GPU's name; None if the device is no GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture: results are the same bit for bit on the same one."""
    return gpu_name(device) or platform.machine()


def set_threads(shared_by: int = 1) -> int:
    """Let torch use the CPUs this job owns (`OMP_NUM_THREADS` wins, then Slurm's count, `shared_by` so many processes); returns
    the number.

    Raises UserError if what is set there is no number of threads.
    """
    chosen = next((name for name in THREAD_VARIABLES if os.environ.get(name)), None)
    text = os.environ[chosen] if chosen else str(len(os.sched_getaffinity(0)))
    outermost = text.split(",")[0].strip()  # OpenMP allows a number for each nesting level: 4,2
    if not re.fullmatch("[1-9][0-9]{0,4}", outermost):
        raise UserError(f"{chosen}={text} is no number of threads: set it to a whole number above 0, or unset it.")
    threads = int(outermost) if chosen == THREAD_VARIABLES[0] else max(1, int(outermost) // shared_by)
    torch.set_num_threads(threads)
    return threads


def make_deterministic() -> None:
    """Same inputs, same bits, on the same device with the same threads. cuBLAS needs its workspace fixed for that."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_deterministic_debug_mode("error")  # as use_deterministic_algorithms(True), without its second of loading a compiler
    torch.backends.cudnn.benchmark = False


def to_device(tensor: Shaped[torch.Tensor, "..."], device: torch.device) -> Shaped[torch.Tensor, "..."]:
    """A CPU tensor on the device without waiting for it: from pageable memory a copy would wait for all work queued there."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
