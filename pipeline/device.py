"""Which device a job computes on, with how many threads, and how it is made deterministic."""

from __future__ import annotations

import os

import torch

from pipeline.errors import WorkError

# A job knows from these that Slurm (or its user) gave it a GPU: lists of device numbers.
GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
NO_GPU = ("", "-1", "NoDevFiles")


def choose_device(device: str) -> torch.device:
    """The device for `device` = auto, cuda or cpu.

    Raises WorkError if a GPU was asked for, or given to this job, and torch cannot use it: a job must not spend a GPU's
    hours computing on the CPU beside it.
    """
    if device == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
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


def set_threads() -> int:
    """Let torch use the CPUs this job owns (`OMP_NUM_THREADS` wins, then Slurm's count); returns the number."""
    chosen = os.environ.get("OMP_NUM_THREADS") or os.environ.get("SLURM_CPUS_PER_TASK")
    threads = int(chosen) if chosen else len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


def make_deterministic() -> None:
    """Same inputs, same bits, on the same device with the same threads. cuBLAS needs its workspace fixed for that."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
