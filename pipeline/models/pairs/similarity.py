"""How alike embeddings are: the cosine or the angle of each two, and the logits of these.

Half precision is left here: near cos = ±1 an angle needs the digits of fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Matrix = Float[Tensor, "rows columns"]
Scalar = Float[Tensor, ""]
MOST_OF_A_SCALE = math.log(100)
"""The natural logarithm of the factor that CLIP's training does not go beyond (Radford et al. 2021, section 2.5)."""
LEAST_SQUARED_SINE = 1e-12
LEAST_DISTANCE_TO_ONE = 1e-6


def cosine(rows: Float[Tensor, "rows width"], columns: Float[Tensor, "columns width"]) -> Matrix:
    """The cosine of each two embeddings, which are of length 1: their scalar product, at least in fp32."""
    with torch.autocast(rows.device.type, enabled=False):
        return _exact(rows) @ _exact(columns).T


def geodesic(cosines: Matrix) -> Matrix:
    """s = 1 − 2θ/π with θ = atan2(√max(1 − c², 1e-12), c): 1 for one direction, 0 for a right angle, −1 for opposite ones.

    Linear in the angle on the sphere; no gradient is infinite, nor at c = ±1, where that of acos is.
    """
    c = _exact(cosines)
    return 1 - torch.atan2((1 - c.square()).clamp_min(LEAST_SQUARED_SINE).sqrt(), c) * (2 / math.pi)


def geodesic_by_acos(cosines: Matrix) -> Matrix:
    """`geodesic` with θ = acos(c), c within ±(1 − 1e-6): beyond that there is no gradient, and s stays 0.0009 from ±1."""
    most = 1 - LEAST_DISTANCE_TO_ONE
    return 1 - torch.acos(_exact(cosines).clamp(-most, most)) * (2 / math.pi)


SIMILARITIES: dict[str, Callable[[Matrix], Matrix]] = {
    "cosine": lambda cosines: cosines, "geodesic": geodesic, "geodesic_acos": geodesic_by_acos,
}  # fmt: skip
"""What the logits are of, by the name that a configuration has for it: from the cosines."""


def logits(similarities: Matrix, scale: Scalar, bias: Scalar, clamp: bool = False) -> Matrix:
    """s·exp(scale) + bias (SigLIP: Zhai et al. 2023, arXiv 2303.15343; CLIP's bias is 0); `clamp`: scale at most ln 100."""
    return similarities * (_Capped.apply(scale) if clamp else scale).exp() + bias


class _Capped(torch.autograd.Function):
    """min(scale, ln 100), with the gradient that leads below: by that of a plain minimum a scale that an optimiser has carried
    past the cap would stay there for ever."""

    @staticmethod
    def forward(ctx: Any, scale: Scalar) -> Scalar:
        ctx.save_for_backward(scale)
        return scale.clamp_max(MOST_OF_A_SCALE)

    @staticmethod
    def backward(ctx: Any, gradient: Scalar) -> Scalar:
        (scale,) = ctx.saved_tensors
        return torch.where((scale < MOST_OF_A_SCALE) | (gradient > 0), gradient, 0.0)


def _exact(numbers: Tensor) -> Tensor:
    """The same in fp32, or finer if they are."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
