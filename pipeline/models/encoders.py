"""What turns cached features into an embedding: nothing, a trained tail, a tail with adapters, or patch convolutions;
or what turns images into one: the whole backbone."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.backbones.base import Backbone
from pipeline.config import encoder as cfg
from pipeline.errors import UserError


class PatchConvs(nn.Module):
    """Two convolutions with ReLU over the grid of patch tokens; the second leaves a single cell."""

    def __init__(self, width: int, grid: tuple[int, int], kernel: int, channels: int) -> None:
        super().__init__()
        rest = (grid[0] - kernel + 1, grid[1] - kernel + 1)
        if min(rest) < 1:
            raise UserError(
                f"model.encoder.kernel {kernel} is larger than the backbone's {grid[0]}×{grid[1]} grid of patch tokens"
            )
        self.grid = grid
        self.spec = {"width": width, "grid": list(grid), "kernel": kernel, "channels": channels}
        self.convs = nn.Sequential(
            nn.Conv2d(width, width, kernel), nn.ReLU(), nn.Conv2d(width, channels, rest), nn.ReLU()
        )

    def forward(self, patches: Tensor) -> Tensor:
        """patches [B, P, D] → [B, channels]."""
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
        out: Tensor = self.convs(maps).flatten(1)
        return out


def make_encoder(encoder: cfg.Encoder, backbone: Backbone | None) -> nn.Module:
    """The encoder, new; `backbone` may be None for the frozen one, which reads the embedding as it is.

    Raises UserError if the backbone has fewer blocks than are to be trained, too small a grid, or no network to train.
    """
    if encoder.kind == "frozen":
        return nn.Identity()
    assert backbone is not None, f"encoder.kind {encoder.kind} is built from a backbone"
    if encoder.kind == "patch_convs":
        return PatchConvs(backbone.width, backbone.grid, encoder.kernel, encoder.channels)
    if encoder.kind == "end_to_end":
        return backbone.network()
    tail = backbone.make_tail(backbone.cut_before(encoder.blocks))
    if encoder.kind == "lora":
        from pipeline.models.adapter import add_adapter  # PEFT takes seconds to import

        adapted: nn.Module = add_adapter(tail, encoder)
        return adapted
    return tail.trainable()


def embedding_width(encoder: cfg.Encoder, embed_dim: int) -> int:
    """Width E of what the encoder gives, for a backbone whose embedding is `embed_dim` wide."""
    return encoder.channels if encoder.kind == "patch_convs" else embed_dim
