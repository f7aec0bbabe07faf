"""Several processes that train one trial together: each embeds its share of a batch, and all take the same step.

Every process has the whole model and draws the same batches. What differs is which part of a batch it embeds; embeddings are
gathered, and gradients added, so that a step is that of one process but for rounding. Tensors of a GPU go by NCCL; those of a
CPU, and what steers the loop, by gloo, which never waits for a GPU and notices at once when a process is gone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import WorkError
from pipeline.training.process_ranks import Rank

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long a process waits for another that is there and says nothing; one that is gone is noticed at once."""
OF_OTHERS = re.compile(r"gloo|nccl|connection|socket|broken pipe|store", re.I)
"""What torch says, as a plain RuntimeError, when another process is gone."""


class OtherEnded(WorkError):
    """Another of the processes has ended: this one has nothing to go on with. Its own words say why."""


class Processes:
    """One process, by itself: it has all of a batch, and there is no other to ask."""

    number, size, is_main = 0, 1, True

    def part(self, n: int) -> slice:
        """Which of the `n` rows of a batch are this process's: shares differ by one at most."""
        return slice(n * self.number // self.size, n * (self.number + 1) // self.size)

    def gather(self, n: int, *parts: Float[Tensor, "share width"]) -> Sequence[Float[Tensor, "n width"]]:
        """Of each of `parts` the rows of all processes, `n` in their order; what any process's loss says of a row reaches, as its
        gradient, the process that it is of."""
        return parts

    def total(self, sums: Float[Tensor, " sums"]) -> Float[Tensor, " sums"]:
        """Added up over processes. A gradient reaches this process's own part alone: `add_gradients` adds the others'."""
        return sums

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let each process have the sum of all gradients."""

    def same(self, tensor: Tensor) -> None:
        """Let `tensor` be, in place, what it is in the main process."""

    def most(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number that any process has here."""
        return numbers

    def from_main(self, work: Callable[[], Sequence[float]]) -> list[float]:
        """Numbers that the main process alone works out."""
        return list(work())

    def main_first(self, work: Callable[[], T]) -> T:
        """Work that the others begin when the main process has done it."""
        return work()


ALONE = Processes()


class Group(Processes):
    """One of several processes."""

    def __init__(self, rank: Rank) -> None:
        self.number, self.size, self.is_main = rank.number, rank.size, rank.is_main

    def gather(self, n: int, *parts: Float[Tensor, "share width"]) -> Sequence[Float[Tensor, "n width"]]:
        return _Gather.apply(torch.cat(parts, dim=1), self, n).split([part.shape[1] for part in parts], dim=1)

    def total(self, sums: Float[Tensor, " sums"]) -> Float[Tensor, " sums"]:
        return _Total.apply(sums)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        work = [dist.all_reduce(p.grad, async_op=True) for p in parameters if p.grad is not None]
        for each in work:
            each.wait()

    def same(self, tensor: Tensor) -> None:
        dist.broadcast(tensor, 0)

    def most(self, *numbers: int) -> tuple[int, ...]:
        told = torch.tensor(numbers)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(told.tolist())

    def from_main(self, work: Callable[[], Sequence[float]]) -> list[float]:
        found = list(work()) if self.is_main else []
        (n,) = self.most(len(found))
        told = torch.tensor(found or [0.0] * n, dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.tolist()

    def main_first(self, work: Callable[[], T]) -> T:
        if self.is_main:
            found = work()
            self.most(0)
            return found
        self.most(0)
        return work()


@contextmanager
def joined(rank: Rank, store: Any, device: torch.device) -> Iterator[Group]:
    """Be one of the processes that meet at `store`. Raises OtherEnded where another ends before the work is done."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with ending_with_others():
        dist.init_process_group(backend, store=store, rank=rank.number, world_size=rank.size, timeout=PATIENCE)
        try:
            group = Group(rank)
            yield group
            group.most(0)  # none leaves while another still needs it
        finally:
            dist.destroy_process_group()


@contextmanager
def ending_with_others() -> Iterator[None]:
    """Say it in words, as OtherEnded, where torch says that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not OF_OTHERS.search(str(error)):
            raise
        why = str(error).strip().splitlines()[0]
        raise OtherEnded(
            f"another process of this training has ended, and this one with it; see what it said itself ({why})"
        ) from error


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group, n: int) -> Tensor:
        ctx.part = group.part(n)
        most = -(-n // group.size)  # all send as many rows: some of them one more than they have
        found = [rows.new_empty(most, *rows.shape[1:]) for _ in range(group.size)]
        dist.all_gather(found, F.pad(rows, (0, 0, 0, most - len(rows))).contiguous())
        ends = [n * (number + 1) // group.size for number in range(group.size)]
        return torch.cat([each[: end - begin] for each, begin, end in zip(found, [0, *ends], ends, strict=False)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = gradient.contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.part], None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor) -> Tensor:
        whole = sums.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient
