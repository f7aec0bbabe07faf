"""Methods of domain generalisation: what the losses of a batch become, and what is added to them (`config/loss.Risk`)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def group_dro(
    losses: Float[Tensor, " losses"], domains: Int[Tensor, " losses"], log_weights: Float[Tensor, " domains"], step: float
) -> Float[Tensor, ""]:
    """Σ q_d · (mean loss of domain d), q_d ∝ q_d · exp(step · that loss) (Sagawa et al. 2020, algorithm 1).

    `log_weights` is log q: a weight that has become tiny can come back, and none overflows.
    """
    sums = torch.zeros_like(log_weights).index_add(0, domains, losses)
    counts = torch.zeros_like(log_weights).index_add(0, domains, torch.ones_like(losses))
    means = sums / counts.clamp_min(1)  # a domain that is not in the batch has none, and keeps its weight
    with torch.no_grad():
        log_weights.copy_((log_weights + step * means).log_softmax(0))
    return (log_weights.exp() * means).sum()


def coral(hidden: Float[Tensor, "images hidden"], domains: Int[Tensor, " images"], n_domains: int) -> Float[Tensor, ""]:
    """Mean squared difference of means and of covariances between each two domains of a batch.

    Sun and Saenko 2016, equation 1, over pairs of training domains and with the means too, as in DomainBed (Gulrajani and
    Lopez-Paz 2021). A domain with fewer than two images in the batch is left out; 0 where there is no pair.
    """
    rows = torch.nn.functional.one_hot(domains, n_domains).to(hidden)  # [B, D]
    n = rows.sum(0)
    means = (rows.T @ hidden) / n.clamp_min(1)[:, None]
    off = hidden - means[domains]
    covariances = torch.einsum("bd,bi,bj->dij", rows, off, off) / (n - 1).clamp_min(1)[:, None, None]
    there = (n >= 2).to(hidden)
    pairs = torch.triu(there[:, None] * there, diagonal=1)
    apart = _mean_squares_between(means) + _mean_squares_between(covariances.flatten(1))
    return (pairs * apart).sum() / pairs.sum().clamp_min(1)


def _mean_squares_between(rows: Float[Tensor, "domains numbers"]) -> Float[Tensor, "domains domains"]:
    """Mean squared difference of each two rows, without a tensor of all differences."""
    squares = rows.square().mean(1)
    return squares[:, None] + squares - 2 * (rows @ rows.T) / rows.shape[1]


def start_log_weights(domains: Int[Tensor, " images"]) -> Float[Tensor, " domains"]:
    """Group DRO's before the first step, equal for each of the training images' domains."""
    n = int(domains.max()) + 1
    return torch.full((n,), -math.log(n), device=domains.device)
