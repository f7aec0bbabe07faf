"""How much a pair counts in a loss: by how rare its classes are, by how well it is told already, and as one of few positives.

Counts are of training images. A class of none, which training does not meet and validation may, counts as one of a single image,
and takes no part in the means that weights are divided by. Focal weights take part in the gradient, as torchvision's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from pipeline.models.pairs.similarity import Matrix, Scalar

Counts = Num[Tensor, " classes"]
Of = Callable[[Tensor], Tensor]
"""From counts to weights, before these are normalised."""
Often = Callable[[Tensor, Tensor, Tensor], Tensor]
"""How often two classes form a pair: from their counts, and whether they are one class."""
MeanOver = Literal["classes", "samples"]
NEARLY = 1e-6
"""The least that a probability is taken to differ from 1, and 1e-12 the least factor of a mean: the slope of a power below 1 is
infinite at 0."""


# ---------------------------------------------------------------- classes
def inverse_frequency(n: Num[Tensor, "*any"], gamma: float = 0.5) -> Float[Tensor, "*any"]:
    """n^−γ."""
    return n.double().pow(-gamma)


def class_balanced(n: Num[Tensor, "*any"], beta: float = 0.9999) -> Float[Tensor, "*any"]:
    """(1 − β) / (1 − βⁿ) (Cui et al. 2019, arXiv 1901.05555, equation 2), by expm1: 1 − βⁿ would lose its digits."""
    return (beta - 1) / torch.expm1(n.double() * math.log(beta))


def class_weights(counts: Counts, of: Of, mean_over: MeanOver = "classes") -> Float[Tensor, " classes"]:
    """`of` each class' count, divided by the mean over classes, or over samples (Σ n_c w_c / Σ n_c)."""
    weights = of(counts.clamp_min(1))
    shares = (counts > 0).double() if mean_over == "classes" else counts.double()
    return weights / ((shares * weights).sum() / shares.sum())


# ---------------------------------------------------------------- pairs of classes
def counted(a: Tensor, b: Tensor, equal: Tensor) -> Tensor:
    """Pairs of an image and a text of two classes among all training images: n_a·n_b."""
    return a * b


def doubled(a: Tensor, b: Tensor, equal: Tensor) -> Tensor:
    """Pairs of two classes among all training images: n_a·n_b, for two unlike classes twice that (either may stand first)."""
    return a * b * torch.where(equal, 1, 2)


def pair_count(a: Tensor, b: Tensor, equal: Tensor, total: float, batch: int) -> Tensor:
    """How often an image in a batch of B of N training images meets a text of a class: of its own class, with c images,
    (c/N)(1 + (B − 1)(c − 1)/(N − 1)), which counts its own text; of another (c₁/N)(B − 1)c₂/(N − 1)."""
    met = (batch - 1) / max(total - 1, 1)
    return a / total * torch.where(equal, 1 + met * (a - 1), met * b)


class ProductWeights:
    """The weight of each two classes: w_a·w_b of `class_weights`, so of inverse frequency (n_a·n_b)^−γ; its mean over all pairs
    is 1."""

    def __init__(self, counts: Counts, of: Of, mean_over: MeanOver = "classes") -> None:
        self.weights = class_weights(counts, of, mean_over)

    def block(self, rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]) -> Matrix:
        """Of rows and columns of these classes."""
        return (self.weights[rows][:, None] * self.weights[columns]).float()


class PairWeights:
    """The weight of each two classes, `of` how often they form a pair (`counted`, `doubled`, `pair_count`); in blocks, for there
    may be ten thousand classes. Its mean is 1 over each two classes taken once (the upper triangle) or, `ordered`, over all that
    are an image's and a text's; or over the pairs that these form."""

    def __init__(self, counts: Counts, of: Of, often: Often, mean_over: MeanOver = "classes", ordered: bool = False) -> None:
        self.n, self.of, self.often = counts.double().clamp_min(1), of, often
        there, sums = torch.nonzero(counts > 0).flatten(), self.n.new_zeros(2)
        for place in range(len(there)):  # a row at a time
            pairs = self._often(there[place : place + 1], there if ordered else there[place:])
            shares = torch.ones_like(pairs) if mean_over == "classes" else pairs
            sums += torch.stack(((shares * of(pairs)).sum(), shares.sum()))
        self.mean = sums[0] / sums[1]

    def block(self, rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]) -> Matrix:
        """Of rows and columns of these classes."""
        return (self.of(self._often(rows, columns)) / self.mean).float()

    def _often(self, rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]) -> Matrix:
        return self.often(self.n[rows][:, None], self.n[columns][None], rows[:, None] == columns)


# ---------------------------------------------------------------- pairs of a batch
def focal(logits: Matrix, targets: Matrix, gamma: float, form: Literal["likelihood", "distance"] = "likelihood") -> Matrix:
    """(1 − p_t)^γ with p = σ(logit): what is told already counts less (Lin et al. 2017, arXiv 1708.02002, equation 4).

    `likelihood`: p_t = 1 − p + t(2p − 1), torchvision's, of soft targets the probability of being right; `distance`:
    p_t = 1 − |t − p|, which soft targets can reach. They are one where t is 0 or 1.
    """
    p = logits.sigmoid()
    wrong = targets * (-logits).sigmoid() + (1 - targets) * p if form == "likelihood" else (targets - p).abs()
    return wrong.clamp_min(NEARLY).pow(gamma)


def focal_of_entropy(entropies: Float[Tensor, " rows"], gamma: float) -> Float[Tensor, " rows"]:
    """(1 − e^−CE)^γ: `focal` of a cross-entropy, e^−CE being the probability of the truth where that is one class."""
    return (-torch.expm1(-entropies)).clamp_min(NEARLY).pow(gamma)


def balance(total: Scalar, n: int) -> tuple[Scalar, Scalar]:
    """w⁺ = B²/(2ΣT) and w⁻ = B²/(2(B² − ΣT)) for ΣT = `total` of n = B pairs: targets, and what they lack to 1, get equal sums.

    Both 1 for a batch without negatives."""
    lacking = n * n - total
    there = lacking > NEARLY * n * n
    return tuple(torch.where(there, n * n / (2 * each.clamp_min(NEARLY)), 1.0) for each in (total, lacking))  # type: ignore[return-value]


def balanced(targets: Matrix, weights: tuple[Scalar, Scalar]) -> Matrix:
    """T·w⁺ + (1 − T)·w⁻."""
    return targets * weights[0] + (1 - targets) * weights[1]


# ---------------------------------------------------------------- joined
def product(factors: Sequence[Tensor]) -> Tensor:
    """w₁·w₂·…"""
    return math.prod(factors[1:], start=factors[0])


def arithmetic(factors: Sequence[Tensor]) -> Tensor:
    """(w₁ + w₂ + …) / k."""
    return torch.stack(list(factors)).mean(0)


def geometric(factors: Sequence[Tensor]) -> Tensor:
    """(w₁·w₂·…)^(1/k), by logarithms."""
    return _above_zero(factors).log().mean(0).exp()


def harmonic(factors: Sequence[Tensor]) -> Tensor:
    """k / (1/w₁ + 1/w₂ + …)."""
    return 1 / (1 / _above_zero(factors)).mean(0)


JOINS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "product": product, "arithmetic": arithmetic, "geometric": geometric, "harmonic": harmonic,
}  # fmt: skip
"""The ways to make one weight of several, by the names that a configuration has for them."""


def _above_zero(factors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(factors)).clamp_min(NEARLY * NEARLY)
