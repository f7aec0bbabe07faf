"""The frozen part of a backbone: from images to features, in honest fp32 or, on a GPU, in bf16."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.backbones.base import Backbone, Tower
from pipeline.config.backbone import FeatureKind
from pipeline.errors import WorkError
from pipeline.features.key import Format
from pipeline.features.kinds import KINDS

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compute_features(
    backbone: Tower,
    images: Shaped[Tensor, "images ..."],
    kind: FeatureKind,
    cut: int = 0,
    dtype: Format = "fp32",
    gradients: bool = False,
) -> Float[Tensor, "images ..."]:
    """What a tower's `pixels` or `transform` gives of images (mostly [B, 3, H, W]) or texts ([B, L]) → pooled embeddings [B, E],
    patch tokens [B, P, D], tokens after `cut` blocks [B, T, D], or what was given, in `dtype`; with `gradients` so that it can be
    differentiated. Inputs and tower are on one device. The computation is fp32, but for bf16 on a GPU: there it runs under
    autocast."""
    # By default cuDNN's convolutions use TF32.
    autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda and dtype == "bf16")
    with torch.inference_mode(not gradients), autocast, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        inputs = backbone.normalised(images) if isinstance(backbone, Backbone) else images
        features: Tensor = KINDS[kind].compute(backbone, inputs, cut)
        return features.to(DTYPES[dtype])


def compile_for(backbone: Backbone, kind: FeatureKind, device: torch.device) -> None:
    """Let torch compile what computes features of a kind, on a GPU; elsewhere, and where nothing is computed, all stays as it is.
    Shapes are those of the first batch, or of any one: the last batch of a shard may be smaller."""
    names: dict[FeatureKind, str] = {"pooled": "embed", "patches": "patches", "cut": "trunk"}
    if device.type == "cuda" and kind in names:
        setattr(backbone, names[kind], torch.compile(getattr(backbone, names[kind])))


def as_stored(features: Float[Tensor, "images ..."], dtype: Format) -> Float[Tensor, "images ..."]:
    """Features in fp32, rounded as a store in `dtype` holds them: what a model has learnt from and is evaluated on."""
    return features.to(DTYPES[dtype]).float()


def check_finite(features: Float[Tensor, "images ..."], positions: Sequence[int], where: Callable[[int], str]) -> None:
    """WorkError if the features of an image, of those at `positions`, are not finite; `where` names it."""
    finite = features.flatten(1).isfinite().all(1).tolist()
    for position, good in zip(positions, finite, strict=True):
        if not good:
            raise WorkError(f"{where(position)}: its features are not finite; check the weights.")
