"""PEFT's layer for an adapted linear one, with PEFT's numbers, computed by fewer and larger steps.

PEFT computes DoRA's norms by passing a unit matrix through the adapter, in a graph that nothing reads, and puts the parts of the
output together in six passes over all tokens. Here V = W + s·B·A is one product that is added up where it stands; of it are the
norms, and mostly the output too. (By ‖W‖² + 2s·rowsum(WAᵀ∘B) + s²·rowsum(BAAᵀ∘B), arXiv 2603.22276, norms would take no V, but
as many multiplications and more, and they would cancel.)"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from peft.tuners.lora.layer import Linear
from peft.tuners.lora.variants import DoraLinearVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Adapter(NamedTuple):
    """y = m/‖V‖ ∘ (V x) + b with V = W + s·B·A (DoRA: arXiv 2402.09353); without magnitudes y = V x + b (LoRA: 2106.09685)."""

    weight: Float[Tensor, "out in"]
    """W, frozen."""
    bias: Float[Tensor, " out"] | None
    down: Float[Tensor, "rank in"]
    """A."""
    up: Float[Tensor, "out rank"]
    """B."""
    scaling: float
    magnitude: Float[Tensor, " out"] | None

    # ------------------------------------------------------------ three ways to the same output
    def by_weight(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """As training W itself would go; the gradients of A and B are then those of V times the other one."""
        whole = self.whole()
        if self.magnitude is not None:
            whole = self.scale(whole).unsqueeze(1) * whole
        return F.linear(x, whole, self.bias)

    def by_both(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """Through V, but with the gradients of A and B by vectors of the rank's length."""
        with torch.no_grad():
            whole = self.whole()
        return self._scaled(_ThroughWhole.apply(x, whole, self.down, self.up, self.scaling), whole)

    def by_rank(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """W x and B (A x) apart, added up within the second product."""
        given, low = F.linear(x, self.weight), F.linear(x, self.down)
        up = self.up.to(low.dtype).t()
        given = torch.addmm(given.flatten(0, -2), low.flatten(0, -2), up, alpha=self.scaling).view(given.shape)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            whole = None if self.magnitude is None else self.whole()
        return self._scaled(given, whole).to(given.dtype)

    def cheapest(self, n_vectors: int) -> str:
        """The way with the fewest multiplications for so many vectors, forwards and, where something learns, backwards."""
        (rank, n_in), n_out = self.down.shape, len(self.up)
        weight, product, low = n_vectors * n_in * n_out, rank * n_in * n_out, n_vectors * rank * (n_in + n_out)
        norm = 0 if self.magnitude is None else product
        learns = torch.is_grad_enabled()
        by_weight = weight + 3 * product if learns else product
        return min((by_weight, "by_weight"), (product + 2 * low * learns, "by_both"), (low * (1 + 2 * learns) + norm, "by_rank"))[
            1
        ]

    # ------------------------------------------------------------ parts
    def whole(self) -> Float[Tensor, "out in"]:
        """V."""
        return torch.addmm(self.weight, self.up, self.down, alpha=self.scaling)

    def scale(self, whole: Float[Tensor, "out in"]) -> Float[Tensor, " out"]:
        """What DoRA multiplies each row of V by; the norm counts as a constant (arXiv 2402.09353, section 4.3)."""
        return cast(Tensor, self.magnitude) / torch.linalg.vector_norm(whole.detach(), dim=1)

    def _scaled(self, product: Float[Tensor, "... out"], whole: Float[Tensor, "out in"] | None) -> Float[Tensor, "... out"]:
        """V x → y."""
        if self.magnitude is None or whole is None:
            return product if self.bias is None else product + self.bias
        scale = self.scale(whole)
        return product * scale if self.bias is None else torch.addcmul(self.bias, product, scale)


class _ThroughWhole(torch.autograd.Function):
    """V x, where of V = W + s·B·A the two factors alone learn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, whole: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, whole, down, up)
        ctx.scaling = scaling
        return F.linear(x, whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, whole, down, up = ctx.saved_tensors
        flat, g = x.flatten(0, -2), gradient.flatten(0, -2)
        of_x = gradient @ whole if ctx.needs_input_grad[0] else None
        of_down = ctx.scaling * ((g @ up).t() @ flat)
        of_up = ctx.scaling * (g.t() @ F.linear(flat, down))
        return of_x, None, of_down, of_up, None


class AdaptedLinear(Linear):  # type: ignore[misc]
    """What PEFT makes of a linear layer. Whatever is not one adapter as it is used here is left to PEFT."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] → [..., out]."""
        if args or kwargs or (adapter := self._only_one()) is None:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        # In bf16 V would round away what is small beside W.
        halved = torch.is_autocast_enabled(x.device.type)
        way = "by_rank" if halved else adapter.cheapest(x.shape[:-1].numel())
        return cast(Tensor, getattr(adapter, way)(x))

    def _only_one(self) -> Adapter | None:
        """The one adapter that there is. None for what has no way here: several, merged ones, dropout, other kinds, a weight that
        learns."""
        names, base = [name for name in self.active_adapters if name in self.lora_A], self.get_base_layer()
        if len(names) != 1 or self.merged or self.disable_adapters or type(base) is not nn.Linear or base.weight.requires_grad:
            return None
        (name,) = names
        drops = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        variant = type(self.lora_variant[name]) if name in self.lora_variant else None
        if drops or self.lora_bias[name] or variant not in (None, DoraLinearVariant):
            return None
        magnitude = self.lora_magnitude_vector[name].weight if variant else None
        return Adapter(base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], magnitude)
