"""The block `train.batches`: which images make up a batch of pairs. A kind draws them itself, by `training/batches.py`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.evaluation import CUTS
from pipeline.config.fits import GIVEN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import Ascending, Fraction, Positive, implementation


class Batches(Kind):
    """How batches are drawn, each of `train.batch_size` images; partial ones are dropped."""

    fits: ClassVar[tuple[Any, ...]] = ()

    @abstractmethod
    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        """The batches of an epoch, rows [size] each, of `training/towers.Drawn` images."""

    def n_images(self, size: int) -> int:
        """How many images a batch has, of those `size` that are asked for."""
        return size

    def misfit(self, classes: Sequence[int], views: Sequence[int], size: int) -> str:
        """Why so many training images of each class, and of each view, fill no batch; empty if they do."""
        n = sum(classes)
        return f"train.batch_size is {size}, and there are {n} images to train on: set it lower" if n < size else ""


class Shuffled(Batches):
    """Images in a shuffled order."""

    kind: Literal["shuffled"] = "shuffled"

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        return implementation("pipeline.training.batches.whole")(rng.permutation(len(of.labels)), size)


class OfOneView(Batches):
    """Each batch of one view (data.columns.view): dorsal or ventral images alone."""

    fits = (Fit("data.columns.view", GIVEN, "makes batches of one view"),)
    kind: Literal["views"]

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        return implementation("pipeline.training.batches.of_one_view")(of.views, size, rng)

    def misfit(self, classes: Sequence[int], views: Sequence[int], size: int) -> str:
        if (most := max(views, default=0)) >= size:
            return ""
        return (
            f"train.batch_size is {size}, and of no view (data.columns.view) are there more than {most} images to train on: set "
            "it lower, or train.batches to another kind"
        )


class OfClasses(Batches):
    """P classes with K images of each: as many classes as the batch has room for. Images that are left when fewer than P classes
    have any are dropped, others in each epoch: few where classes are of like sizes, most of a long tail's long classes."""

    kind: Literal["classes"]
    per_class: Positive = 2
    """K, images of each class in a batch; `train.batch_size` is P · K, and what does not divide is left out."""

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        draw = implementation("pipeline.training.batches.of_classes")
        return draw(of.labels, size // self.per_class, self.per_class, rng)

    def n_images(self, size: int) -> int:
        return size - size % self.per_class

    def misfit(self, classes: Sequence[int], views: Sequence[int], size: int) -> str:
        wanted, there = size // self.per_class, sum(n > 0 for n in classes)
        if not wanted:
            return f"train.batches.per_class is {self.per_class}, and train.batch_size {size}: set that higher"
        if wanted <= there:
            return ""
        return (
            f"train.batch_size is {size}, for {wanted} classes with {self.per_class} images of each (train.batches.per_class), "
            f"and there are {there} classes to train on: set it to {there * self.per_class} or lower"
        )


class Balanced(Batches):
    """Images drawn with replacement, a class of n images in proportion to n^power (arXiv 1805.00932)."""

    kind: Literal["balanced"]
    power: Fraction = 0.5
    """1: as they come; 0: all classes alike."""

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        return implementation("pipeline.training.batches.balanced")(of.labels, size, self.power, rng)


class OfBuckets(Batches):
    """Equal shares of the classes with few, medium and many training images in every batch."""

    kind: Literal["buckets"]
    cuts: Annotated[tuple[int, int], Ascending] = CUTS
    """Few up to the first number of training images, many above the second. (evaluate.buckets are those of results.)"""

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        return implementation("pipeline.training.batches.of_buckets")(of.buckets(self.cuts), size, rng)


class OfNeighbours(Batches):
    """Hard negatives: a class that is drawn, and those likest to it (arXiv 2010.04592)."""

    fits = (Fit("data.tree", GIVEN, "finds neighbours by the tree", "by", ("tree",)),)
    kind: Literal["neighbours"]
    by: Literal["tree", "embedding"] = "embedding"
    """What tells which classes are alike: the tree, or the classes' embeddings as they are when the epoch begins."""
    per_class: int = Field(1, ge=1)
    """Images of each class in a batch."""

    def draw(self, of: Any, size: int, rng: Any) -> Iterator[Any]:
        likeness = of.tree if self.by == "tree" else of.likeness()
        return implementation("pipeline.training.batches.of_neighbours")(of.labels, likeness, size, self.per_class, rng)
