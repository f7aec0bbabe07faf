"""Which trials are this job's: the job tasks of a Slurm array share them out. Loads no torch."""

import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pipeline.errors import UserError

T = TypeVar("T")


def my_share(items: Sequence[T], environ: Mapping[str, str] = os.environ) -> list[T]:
    """Items number rank, rank + n, rank + 2n, … for job task `rank` of `n`; all of them outside an array."""
    rank, n = array_rank(environ)
    return list(items[rank::n])


def array_rank(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """This job task's rank in its array and the number of job tasks; (0, 1) outside an array.

    Raises UserError for an array with gaps: its job tasks cannot tell their rank from what Slurm tells them.
    """
    low, step, count = array_shape(environ)
    return (int(environ.get("SLURM_ARRAY_TASK_ID", low)) - low) // step, count


def array_shape(environ: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """First index, step and number of job tasks of this one's array; (0, 1, 1) outside an array.

    Raises UserError for an array with gaps.
    """
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return 0, 1, 1
    low, high, step, count = (
        int(environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", "0"), ("MAX", "0"), ("STEP", "1"), ("COUNT", "1"))
    )
    if (high - low) // step + 1 != count:
        raise UserError(
            f"--array has {count} job tasks between {low} and {high}: use a range without gaps, such as --array=0-{count - 1}"
        )
    return low, step, count
