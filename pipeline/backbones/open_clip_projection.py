"""The matrix that a tower of open_clip ends in, and another one multiplied into it: what is learnt behind a tower becomes a part
of it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class LastProjection(NamedTuple):
    """What gives the embedding: a matrix that embeddings are multiplied by from the right, or a linear layer."""

    name: str
    """Within its tower."""
    is_layer: bool
    matrix: Tensor
    """[width, E]; of a layer its weight [E, width]."""
    bias: Tensor | None


PLACES = ("proj", "text_projection", "attnpool.c_proj", "head.proj", "head.mlp.fc2", "trunk.head", "trunk.head.fc", "trunk.fc")
"""Where the towers keep it: vision transformers and Hugging Face's text towers; CLIP's and other text transformers; ResNets; what
stands behind networks of timm, or the last layer of these."""


def last_projection(tower: nn.Module) -> LastProjection | None:
    """That of an image or a text tower; None where its embedding does not come out of a matrix."""
    for place in PLACES:
        name, found = _last_of(place, _at(tower, place))
        if isinstance(found, nn.Linear):
            return LastProjection(name, True, found.weight, found.bias)
        if isinstance(found, Tensor):
            return LastProjection(name, False, found, None)
    return None


def multiplied(projection: LastProjection, matrix: Tensor, prefix: str) -> dict[str, Tensor]:
    """Its tensors, names behind `prefix`, when its embedding is multiplied by `matrix` [E, E] from the right. In double
    precision, so that what is rounded is the result alone."""
    wide, own = matrix.double(), projection.matrix.double()
    name, product = f"{prefix}{projection.name}", wide.T @ own if projection.is_layer else own @ wide
    found = {f"{name}.weight" if projection.is_layer else name: product}
    if projection.bias is not None:
        found[f"{name}.bias"] = projection.bias.double() @ wide
    return {key: tensor.detach().to(projection.matrix.dtype) for key, tensor in found.items()}


def _at(tower: nn.Module, place: str) -> object:
    """What stands there; None if nothing does."""
    found: object = tower
    for name in place.split("."):
        found = getattr(found, name, None)
    return found


def _last_of(place: str, found: object) -> tuple[str, object]:
    """The last layer of a sequence, and its name."""
    if isinstance(found, nn.Sequential) and len(found):
        return f"{place}.{len(found) - 1}", found[len(found) - 1]
    return place, found
