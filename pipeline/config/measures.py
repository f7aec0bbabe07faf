"""What a backbone measures, and what parameters and bytes follow from that.

Parameters are counted; what a block keeps while it computes was measured once (open_clip's ViT-B-16, torch 2) and grows with
images, tokens and width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BLOCK = 12
"""Parameters of a transformer block in units of width²: attention's four projections, a perceptron four times as wide."""
SIDES = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2, "c_fc": 5, "c_proj": 5}
"""Width in plus width out of each projection, in units of width: what an adapter of rank 1 has there."""
KEPT = {"tail": (40, 64), "lora": (46, 72), "dora": (62, 100)}
"""Bytes that a block keeps for the backward pass in bf16 and in fp32, for each image, token and unit of width."""
PASSING = {"tail": 30, "lora": 57, "dora": 108}
"""Bytes at the height of a forward pass in fp32 that keeps nothing, for each image, token and unit of width."""
KEPT_OF_IMAGE, PASSING_OF_IMAGE = (560, 870), 64
"""The same of a network without such blocks, for each image and number of its input: what the hungriest of those measured takes
(timm's resnet18, resnet50, efficientnet_b0, convnext_tiny, densenet121, at 224 pixels)."""


@dataclass(frozen=True)
class Measures:
    """What sizes are estimated from."""

    n_blocks: int
    embed_dim: int
    """Width of its pooled embedding."""
    width: int
    """Of a token."""
    n_patches: int
    n_parameters: int
    n_inputs: int
    """Numbers in one image as it reads it, in all of its views."""
    n_views: int = field(default=1, kw_only=True)
    """Of an image."""

    @property
    def n_tokens(self) -> int:
        """Numbers in one image's tokens: those of the patches and that of the class, of each view."""
        return (self.n_patches + 1) * self.width * self.n_views

    def kept_bytes(self, fp32: bool, again: bool = False) -> int:
        """What the whole backbone keeps of an image for the backward pass; `again`: with gradient checkpointing, where it has
        blocks."""
        of_blocks = kept_of_blocks(self.n_tokens, self.n_blocks, KEPT["tail"][fp32], again)
        return of_blocks or self.n_inputs * KEPT_OF_IMAGE[fp32]

    def passing_bytes(self) -> int:
        """What an image takes on its way through the whole backbone."""
        return self.n_tokens * PASSING["tail"] if self.n_blocks else self.n_inputs * PASSING_OF_IMAGE


def kept_of_blocks(numbers: int, n_blocks: int, each: int, again: bool) -> int:
    """What blocks keep of an image with so many `numbers` in its tokens, `each` bytes a number; `again`: what every block reads,
    in fp32, and of one block, that is computed again, the rest."""
    return numbers * (each + 4 * (n_blocks - 1) if again and n_blocks else each * n_blocks)
