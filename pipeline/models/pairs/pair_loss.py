"""The loss of a batch of pairs, as a configuration says it (`config/pairs.PairLoss`): whole, in chunks, over processes.

Everything is a sum over blocks of local rows × all columns. A process that has gathered all embeddings calls `sums` with its own
rows, adds up the sums of all processes, and `joined` makes the loss of them; one process does so with all rows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.config import pairs as cfg
from pipeline.config.section import implementation
from pipeline.models.pairs import losses, weights
from pipeline.models.pairs.similarity import MOST_OF_A_SCALE, SIMILARITIES, Matrix, Scalar, cosine, logits
from pipeline.models.pairs.targets import TARGETS, ClassFacts, Codes, Multipositive, same

Scales = Float[Tensor, " losses"]
"""The log of the factor, or the bias, of the logits of each loss: one, or of a second loss two."""
Sums = Float[Tensor, " sums"]
Balance = tuple[Scalar, Scalar]


@dataclass(frozen=True)
class Batch:
    """Pairs of an image and a text, or some of them."""

    image: Float[Tensor, "pairs width"]
    """Embeddings of length 1."""
    text: Float[Tensor, "pairs width"]
    """Embeddings of length 1."""
    codes: Codes

    @classmethod
    def whole(
        cls,
        image: Float[Tensor, "pairs width"],
        text: Float[Tensor, "pairs width"],
        classes: Int[Tensor, " pairs"],
        images: Int[Tensor, " pairs"] | None = None,
    ) -> Batch:
        """All pairs of a batch, in their order; `images` tells which are of one image, None: none."""
        positions = torch.arange(len(classes), device=classes.device)
        return cls(image, text, Codes(classes, positions, positions if images is None else images))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.image[part], self.text[part], self.codes[part])


class Term(ABC):
    """One loss of a batch, as sums over blocks of it."""

    n_sums: int
    """How many numbers `sums` gives."""

    def balance(self, codes: Codes, rows: int) -> Balance | None:
        """What pairs that are alike and pairs that are not weigh in a whole batch, if the loss balances them; so many rows at a
        time."""
        return None

    @abstractmethod
    def sums(self, mine: Batch, everyone: Batch, scale: Scalar, bias: Scalar, balance: Balance | None) -> Sums:
        """Of the rows that are `mine`, against all columns: what is added over blocks."""

    @abstractmethod
    def value(self, sums: Sums, n: int) -> Scalar:
        """The loss of a batch of `n` pairs, from the added sums."""


class OfLogits(Term):
    """One that compares the logits of images and texts with targets."""

    def __init__(self, block: Any, facts: ClassFacts, batch: int) -> None:
        self.block: cfg.Compared = block
        self.of_cosines, self.join = SIMILARITIES[block.similarity], weights.JOINS[block.weights.join]
        self.targets = TARGETS[block.targets](facts, block.shuffle)

    def logits(
        self, rows: Float[Tensor, "rows width"], columns: Float[Tensor, "columns width"], scale: Scalar, bias: Scalar
    ) -> Matrix:
        """Of each row's and each column's embedding."""
        return logits(self.of_cosines(cosine(rows, columns)), scale, bias, self.block.clamp_scale)


class InfoNce(OfLogits):
    """`losses.info_nce`, its rows weighted by class and focus, its logits adjusted by the log prior of the columns' classes."""

    n_sums = 4

    def __init__(self, block: Any, facts: ClassFacts, batch: int) -> None:
        super().__init__(block, facts, batch)
        self.tau, of = block.logit_adjustment, _of_counts(block.weights)
        self.class_weights = None if of is None else weights.class_weights(facts.counts, of, block.weights.mean_over).float()
        self.log_prior = (facts.counts.double().clamp_min(1) / facts.counts.sum()).log().float()

    def sums(self, mine: Batch, everyone: Batch, scale: Scalar, bias: Scalar, balance: Balance | None) -> Sums:
        targets = self.targets.block(mine.codes, everyone.codes)
        sides = ((mine.image, everyone.text), (mine.text, everyone.image))
        found = [self._direction(self.logits(*side, scale, bias), targets, mine.codes, everyone.codes) for side in sides]
        return torch.cat(found)

    def value(self, sums: Sums, n: int) -> Scalar:
        return losses.info_nce_of(sums)

    def _direction(self, found: Matrix, targets: Matrix, rows: Codes, columns: Codes) -> losses.TwoSums:
        if self.tau:
            found = losses.adjusted(found, self.log_prior[columns.classes], self.tau)
        entropies = losses.cross_entropy(found, targets)
        factors = [] if self.class_weights is None else [self.class_weights[rows.classes]]
        if gamma := self.block.weights.focal:
            factors.append(weights.focal_of_entropy(entropies, gamma))
        return losses.weighted_sums(entropies, self.join(factors) if factors else torch.ones_like(entropies))


class OfEachPair(OfLogits):
    """Σ W·loss / B, W joined of the weights of classes, of focus and of balance."""

    n_sums = 1

    def __init__(self, block: Any, facts: ClassFacts, batch: int) -> None:
        super().__init__(block, facts, batch)
        self.pair_weights = _pair_weights(block.weights, facts, batch)

    def balance(self, codes: Codes, rows: int) -> Balance | None:
        if not self.block.weights.balance:
            return None
        blocks = [self.targets.block(codes[part], codes).sum() for part in _parts(len(codes.classes), rows)]
        return weights.balance(torch.stack(blocks).sum(), len(codes.classes))

    @abstractmethod
    def each(self, found: Matrix, targets: Matrix) -> Matrix:
        """The loss of each pair."""

    def sums(self, mine: Batch, everyone: Batch, scale: Scalar, bias: Scalar, balance: Balance | None) -> Sums:
        found = self.logits(mine.image, everyone.text, scale, bias)
        targets = self.targets.block(mine.codes, everyone.codes).to(found)
        each, factors = self.each(found, targets), []
        if self.pair_weights is not None:
            factors.append(self.pair_weights.block(mine.codes.classes, everyone.codes.classes))
        if gamma := self.block.weights.focal:
            factors.append(weights.focal(found, targets, gamma, self.block.weights.focal_form))
        if balance is not None:
            factors.append(weights.balanced(targets, balance))
        return (self.join(factors) * each if factors else each).sum()[None]

    def value(self, sums: Sums, n: int) -> Scalar:
        return sums[0] / n


class Bce(OfEachPair):
    """`losses.bce`."""

    def each(self, found: Matrix, targets: Matrix) -> Matrix:
        return losses.bce(found, targets)


class Squared(OfEachPair):
    """`losses.squared`."""

    def each(self, found: Matrix, targets: Matrix) -> Matrix:
        return losses.squared(found, targets)


class Huber(OfEachPair):
    """`losses.huber`."""

    def __init__(self, block: Any, facts: ClassFacts, batch: int) -> None:
        super().__init__(block, facts, batch)
        self.beta = block.beta

    def each(self, found: Matrix, targets: Matrix) -> Matrix:
        return losses.huber(found, targets, self.beta)


class BetweenImages(Term):
    """`losses.supervised_contrastive` of the images alone, which has a temperature of its own."""

    n_sums = 2

    def __init__(self, block: cfg.Images, facts: ClassFacts) -> None:
        self.temperature, self.alike = block.temperature, Multipositive(facts)

    def sums(self, mine: Batch, everyone: Batch, scale: Scalar, bias: Scalar, balance: Balance | None) -> Sums:
        own, alike = same(mine.codes.images, everyone.codes.images).float(), self.alike.block(mine.codes, everyone.codes)
        return losses.supervised_contrastive_sums(cosine(mine.image, everyone.image), alike, own, self.temperature)

    def value(self, sums: Sums, n: int) -> Scalar:
        return sums[0] / sums[1].clamp_min(1)


class PairLoss:
    """The loss of a batch of pairs: the first, a second if there is one, and that between images if it has a weight."""

    def __init__(self, block: cfg.PairLoss) -> None:
        self.block = block
        self.n_scales = 1 if block.second is None else 2
        """How many scales and biases of logits there are: the second loss has its own, which start at the first one's."""
        self.terms: tuple[Term, ...] = ()

    def prepare(self, facts: ClassFacts, batch: int) -> None:
        """Take over what is known of the classes, once, on the device of training; `batch`: B, pairs of a whole batch.

        Raises UserError for targets that the data know nothing of."""
        self.terms = tuple(implementation(each.term)(each, facts, batch) for each in self.block.compared)
        if self.block.images.weight:
            self.terms += (BetweenImages(self.block.images, facts),)

    @property
    def similarity(self) -> str:
        """What the logits of the first loss are of."""
        return self.block.similarity

    @property
    def most_of_a_scale(self) -> float:
        """What the logarithm of the first loss's factor is kept below."""
        return MOST_OF_A_SCALE if self.block.clamp_scale else math.inf

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the first loss, the second, and that between images: those that there are."""
        second = self.block.second
        first = (1.0,) if second is None else (1 - second.weight, second.weight)
        return (*first, *filter(None, (self.block.images.weight,)))

    def loss(self, batch: Batch, scale: Scales, bias: Scales, rows: int | None = None) -> Scalar:
        """Of a whole batch; with `rows` in chunks of so many, each computed anew for its gradients, so that no B×B matrix is ever
        whole."""
        return self.joined(self.sums(batch, batch, scale, bias, rows), len(batch))

    def sums(self, mine: Batch, everyone: Batch, scale: Scales, bias: Scales, rows: int | None = None) -> Sums:
        """Of `mine`, rows of the whole batch `everyone`: to be added over processes."""
        balances = [term.balance(everyone.codes, rows or len(mine)) for term in self.terms]
        if rows is None:
            return self._sums(mine, everyone, scale, bias, balances)
        again = partial(checkpoint, self._sums, use_reentrant=False, preserve_rng_state=False)
        blocks = [again(mine[part], everyone, scale, bias, balances) for part in _parts(len(mine), rows)]
        return torch.stack(blocks).sum(0)

    def each(self, sums: Sums, n: int) -> Float[Tensor, " terms"]:
        """The first loss, the second, and that between images, from the added sums of `n` pairs."""
        parts = sums.split([term.n_sums for term in self.terms])
        return torch.stack([term.value(part, n) for term, part in zip(self.terms, parts, strict=True)])

    def joined(self, sums: Sums, n: int, to_report: bool = False) -> Scalar:
        """The loss that is minimised, from the added sums of `n` pairs; `to_report`: without `normalize_by_value`, by which it is
        the same number whatever is learnt."""
        by_value = self.block.normalize_by_value and not to_report
        return losses.blend(self.each(sums, n), sums.new_tensor(self.shares), by_value)

    def _sums(self, mine: Batch, everyone: Batch, scale: Scales, bias: Scales, balances: Sequence[Balance | None]) -> Sums:
        found = []
        for place, (term, balance) in enumerate(zip(self.terms, balances, strict=True)):
            own = min(place, self.n_scales - 1)  # the loss between images has none, and is last
            found.append(term.sums(mine, everyone, scale[own], bias[own], balance))
        return torch.cat(found)


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, n, rows)]


def _of_counts(block: cfg.Weights) -> weights.Of | None:
    """From counts to weights, as the configuration says; None: all alike."""
    known: dict[str, weights.Of] = {
        "inverse_frequency": partial(weights.inverse_frequency, gamma=block.gamma),
        "class_balanced": partial(weights.class_balanced, beta=block.beta),
    }
    return known.get(block.classes)


def _pair_weights(block: cfg.Weights, facts: ClassFacts, batch: int) -> weights.ProductWeights | weights.PairWeights | None:
    if (of := _of_counts(block)) is None:
        return None
    total = float(facts.counts.sum())
    often: dict[str, weights.Often] = {
        "count": weights.counted,
        "doubled": weights.doubled,
        "probability": partial(weights.pair_count, total=total, batch=batch),
    }
    if block.pairs in often:
        return weights.PairWeights(facts.counts, of, often[block.pairs], block.mean_over, ordered=block.pairs == "count")
    return weights.ProductWeights(facts.counts, of, block.mean_over)
