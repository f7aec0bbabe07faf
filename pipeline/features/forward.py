"""The frozen part of a backbone: from images to features, in honest fp32 or, on a GPU, in bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from pipeline.backbones.base import Backbone
from pipeline.config.backbone import FeatureKind
from pipeline.errors import WorkError
from pipeline.features.kinds import KINDS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compute_features(
    backbone: Backbone, images: Tensor, kind: FeatureKind, cut: int = 0, dtype: Literal["bf16", "fp32"] = "fp32"
) -> Tensor:
    """Images [B, 3, H, W] → pooled embeddings [B, E], patch tokens [B, P, D], tokens after `cut` blocks [B, T, D], or the
    images themselves, in `dtype`.

    Images and backbone are on one device. The computation is fp32, but for bf16 on a GPU: there it runs under autocast.
    """
    with torch.inference_mode(), _precision(images.device, DTYPES[dtype]):
        features: Tensor = KINDS[kind].compute(backbone, images, cut)
        return features.to(DTYPES[dtype])


def check_finite(features: Tensor, positions: Sequence[int], where: Callable[[int], str]) -> None:
    """WorkError if an image's features ([B, …], of the images at `positions`) are not finite; `where` names it."""
    finite = features.flatten(1).isfinite().all(1).tolist()
    for position, good in zip(positions, finite, strict=True):
        if not good:
            raise WorkError(f"{where(position)}: its features are not finite; check the weights.")


@contextmanager
def _precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast for bf16 on a GPU, else fp32 in earnest: by default cuDNN's convolutions use TF32."""
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and dtype is torch.bfloat16)
    with autocast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
