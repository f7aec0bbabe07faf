"""What pairs cost: each loss on matrices of logits and targets, or on a block of their rows.

A loss over a batch is made of sums over blocks of rows (`info_nce_sums`, `pairwise_sum`), so that neither one process nor one
chunk has to hold the whole matrix: sums of blocks are added, then divided.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.pairs.similarity import Matrix, Scalar

PerRow = Float[Tensor, " rows"]
TwoSums = Float[Tensor, " two"]
"""Σ w·loss and Σ w."""


# ---------------------------------------------------------------- of rows
def cross_entropy(logits: Matrix, targets: Matrix) -> PerRow:
    """CE(softmax(logits), T / ΣT) of each row: its targets, which are not all 0, are normalised to sum to 1.

    Of one positive a row CLIP's (Radford et al. 2021, arXiv 2103.00020), of several UniCL's (Yang et al. 2022, arXiv 2204.03610).
    """
    return -(targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1)


def weighted_sums(losses: PerRow, weights: PerRow) -> TwoSums:
    """Σ w·loss and Σ w, which blocks are added by."""
    return torch.stack(((weights * losses).sum(), weights.sum()))


def adjusted(logits: Matrix, log_prior: Float[Tensor, " columns"], tau: float) -> Matrix:
    """logits + τ·log π of each column's class (Menon et al. 2021, arXiv 2007.07314, equation 10).

    What is common has to be told by a larger margin, so that logits as they are, at prediction, favour nothing for being common.
    """
    return logits + tau * log_prior


def info_nce(logits: Matrix, targets: Matrix, weights: PerRow | None = None) -> Scalar:
    """½[CE(logits, rownorm T) + CE(logitsᵀ, rownorm Tᵀ)]: each direction's own rows are normalised, their mean weighted by
    `weights` of the pairs. At T = identity this is open_clip's ClipLoss."""
    weights = logits.new_ones(len(logits)) if weights is None else weights
    directions = [weighted_sums(cross_entropy(x, t), weights) for x, t in ((logits, targets), (logits.T, targets.T))]
    return info_nce_of(torch.cat(directions))


def info_nce_of(sums: Float[Tensor, " four"]) -> Scalar:
    """InfoNCE from the added `weighted_sums` of either direction."""
    return (sums[0] / sums[1] + sums[2] / sums[3]) / 2


# ---------------------------------------------------------------- of each pair
def bce(logits: Matrix, targets: Matrix) -> Matrix:
    """−T·log σ(logit) − (1 − T)·log σ(−logit) of each pair (SigLIP: Zhai et al. 2023, arXiv 2303.15343, with soft targets)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def squared(logits: Matrix, targets: Matrix) -> Matrix:
    """(logit − (2T − 1))² of each pair."""
    return (logits - (2 * targets - 1)).square()


def huber(logits: Matrix, targets: Matrix, beta: float = 0.1) -> Matrix:
    """With d = |logit − (2T − 1)| of each pair: d²/(2β) below β, d − β/2 above (Girshick 2015, arXiv 1504.08083, smooth L1)."""
    return F.smooth_l1_loss(logits, 2 * targets - 1, reduction="none", beta=beta)


def pairwise(of: Callable[[Matrix, Matrix], Matrix], logits: Matrix, targets: Matrix, weights: Matrix | None = None) -> Scalar:
    """Σ W·loss / B over the whole matrix. Of `bce` at T = identity this is open_clip's SigLipLoss."""
    losses = of(logits, targets)
    return (losses if weights is None else weights * losses).sum() / len(logits)


# ---------------------------------------------------------------- between images
def supervised_contrastive_sums(similarities: Matrix, positives: Matrix, own: Matrix, temperature: float) -> TwoSums:
    """Σ over rows that have positives of −1/|P(i)| Σ_p log[exp(s_ip/τ) / Σ_{a≠i} exp(s_ia/τ)], and how many such rows there are
    (Khosla et al. 2020, arXiv 2004.11362, equation 2, L_out).

    `positives` are 1 for images of one class, `own` for an image and itself, however often it stands in the batch, which is
    neither a positive nor among the others.
    """
    others = positives * (1 - own)
    least = torch.finfo(similarities.dtype).min  # not −∞, of which a batch of one image would make NaN
    scores = (similarities / temperature).masked_fill(own > 0, least).log_softmax(1).masked_fill(own > 0, 0.0)
    counts = others.sum(1)
    losses = -(others * scores).sum(1) / counts.clamp_min(1)
    return weighted_sums(losses, (counts > 0).to(losses))


def supervised_contrastive(similarities: Matrix, positives: Matrix, temperature: float = 0.1) -> Scalar:
    """`supervised_contrastive_sums` of the whole matrix as their mean; 0 for a batch in which no image has a positive."""
    own = torch.eye(len(similarities), device=similarities.device)
    sums = supervised_contrastive_sums(similarities, positives, own, temperature)
    return sums[0] / sums[1].clamp_min(1)


# ---------------------------------------------------------------- joined
def blend(losses: Float[Tensor, " losses"], shares: Float[Tensor, " losses"], by_value: bool = False) -> Scalar:
    """Σ share·loss: of two, (1 − m)·L₁ + m·L₂. `by_value`: each loss divided by its own value, which takes no part in the
    gradient, so that shares are of relative changes; the number itself then is the sum of the shares, whatever is learnt."""
    return (shares * (losses / losses.detach().clamp_min(torch.finfo(losses.dtype).tiny) if by_value else losses)).sum()
