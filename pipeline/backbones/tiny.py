"""Tiny backbones with random weights, in the Hub's own file layouts, for the demo and the tests.

Why not the libraries' own initialisation. In a transformer with plain random weights the class token's own embedding, the
positions and the biases dominate the output; images differ by about a tenth of its length, and a head on the L2-normalised
embedding hardly learns. The weights here are as random, but drawn so that the image comes through:

- the patch embedding is a random mixture of slow cosines per colour channel (white noise would see little but the mean);
- positions are slow waves over the grid, several times as strong as the content, the queries' biases are as strong as
  their weights, and heads are narrow: each head looks at a part of the image of its own, whatever is there. So the class
  token learns where things are, hence their size and shape, and not the mean colour alone;
- the perceptrons' gain is low: each random nonlinearity on the way mixes what a linear head would need apart.

Then the model is calibrated on images made of noise, gradients and blobs, drawn from the seed and never from any data: the
bias of every residual branch is set so that its mean over them is zero at the class token, and the final layer norm's
affine map so that its output has mean 0 and variance 1 in each dimension. open_clip's projection then whitens that output,
so that no direction (brightness above all) drowns the others when the embedding is scaled to length 1. All of it is plain
weights: the files hold nothing that a real model's files do not. Figures: tests/test_backbones.py.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from jaxtyping import Float
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from pipeline.backbones.base import Backbone, Tail, seeded
from pipeline.backbones.dinov2 import Dinov2Backbone
from pipeline.backbones.open_clip_image import OpenClipBackbone
from pipeline.disk.writing import atomic_folder, write_json

OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 8, "width": 64, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1},
}
"""BioCLIP-2's kind of model, small: 8 blocks, so that LoRA on the last six leaves a trunk."""
PREPROCESS = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
DINOV2: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8, "image_size": 56, "patch_size": 7}
"""An 8 × 8 grid, so that a 5 × 5 convolution leaves 4 × 4."""

GAINS = {
    "q_proj": (0.5, 1.0),
    "k_proj": (1.5, 0.0),
    "v_proj": (1.0, 0.0),
    "out_proj": (0.75, 0.0),
    "c_fc": (1.4, 0.5),
    "c_proj": (0.25, 0.0),
}
"""Projection → standard deviation of its weights times √fan-in, and of its bias."""
CENTRED = ("out_proj", "c_proj")
"""The projections that end a residual branch."""
N_CALIBRATION = 256

Draw = Callable[..., Tensor]
"""Standard normal numbers of a shape, in fp64."""


def write_tiny_open_clip(folder: Path, seed: int = 0) -> None:
    """A tiny CLIP as a `local-dir:` of open_clip: open_clip_config.json and open_clip_model.safetensors. `folder` appears, or is
    replaced, as a whole."""
    with seeded(seed):
        model = open_clip.CLIP(**OPEN_CLIP)
    preprocess = image_transform_v2(PreprocessCfg(size=64, **cast(Any, PREPROCESS)), is_train=False)
    visual, draw = model.visual.requires_grad_(False), _draws(seed)
    _fill(visual.conv1.weight, _patch_filters(draw, *visual.conv1.weight.shape[::2]))
    _fill(visual.positional_embedding, 5 * _positions(draw, visual.grid_size[0], OPEN_CLIP["embed_dim"]))
    _fill(visual.class_embedding, 0.1 * draw(OPEN_CLIP["embed_dim"]))
    backbone = OpenClipBackbone(visual, preprocess, "tiny open_clip")
    tail, tokens = _make_blocks(backbone, draw)
    final = _calibrate_norm(tail, tokens[:, 0])
    cast(Tensor, tail.proj).copy_(_whitening(final, draw))
    model.load_state_dict(tail.float().to_native(), strict=False)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with atomic_folder(folder, replace=True) as new:
        save_file(state, new / "open_clip_model.safetensors")
        write_json(new / "open_clip_config.json", {"model_cfg": OPEN_CLIP, "preprocess_cfg": PREPROCESS})


def write_tiny_dinov2(folder: Path, seed: int = 0) -> None:
    """A tiny DINOv2 as transformers saves one: config.json, model.safetensors and preprocessor_config.json. `folder` appears, or
    is replaced, as a whole."""
    with seeded(seed):
        model = Dinov2Model(Dinov2Config(**DINOV2))
    side = DINOV2["image_size"]
    processor = BitImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_center_crop=True, do_resize=True
    )
    draw, embeddings = _draws(seed), model.requires_grad_(False).eval().embeddings
    projection = embeddings.patch_embeddings.projection
    _fill(projection.weight, _patch_filters(draw, *projection.weight.shape[::2]))
    projection.bias.zero_()
    _fill(embeddings.position_embeddings, 3 * _positions(draw, side // DINOV2["patch_size"], DINOV2["hidden_size"]))
    _fill(embeddings.cls_token, 0.1 * draw(DINOV2["hidden_size"]))
    tail, tokens = _make_blocks(Dinov2Backbone(model, processor, "tiny DINOv2"), draw)
    _calibrate_norm(tail, tokens[:, 1:].flatten(0, 1))
    model.load_state_dict(tail.float().to_native(), strict=False)
    with atomic_folder(folder, replace=True) as new:
        for part in (processor, model):
            part.save_pretrained(new)


# ---------------------------------------------------------------- drawing weights
def _draws(seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.data.copy_(values)


def _patch_filters(draw: Draw, n: int, side: int) -> Tensor:
    """[n, 3, side, side]: random mixtures of the nine slowest cosines; an image of ones gives about 1."""
    waves = _waves(side)
    gains = (1 + torch.arange(3)[:, None] + torch.arange(3)).sqrt()  # images have less of the faster ones
    return torch.einsum("ncuv,uv,ui,vj->ncij", draw(n, 3, 3, 3), gains, waves, waves) / side**2


def _positions(draw: Draw, side: int, width: int) -> Tensor:
    """[1 + side², width]: nothing for the class token, then random mixtures of slow cosines over the grid, of variance 1."""
    waves = _waves(side)
    maps = torch.einsum("nuv,ui,vj->ijn", draw(width, 3, 3), waves, waves).flatten(0, 1)
    maps = (maps - maps.mean(dim=0)) / maps.std()
    return torch.cat([torch.zeros(1, width, dtype=maps.dtype), maps])


def _waves(side: int) -> Tensor:
    """[3, side]: the constant and the two slowest cosines."""
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return torch.stack([torch.cos(math.pi * k * at) for k in range(3)])


def _make_blocks(backbone: Backbone, draw: Draw) -> tuple[Tail, Tensor]:
    """All blocks of a backbone with new weights, centred at the class token, in fp64; and the calibration tokens after them."""
    tail = backbone.make_tail(0).requires_grad_(False).eval().double()
    for block in tail.blocks:
        modules = {path.rpartition(".")[2]: module for path, module in block.named_modules()}
        for name, (weight_gain, bias_gain) in GAINS.items():
            layer = cast(nn.Linear, modules[tail.projections[name][0]])
            _fill(layer.weight, draw(*layer.weight.shape) * weight_gain / layer.in_features**0.5)
            _fill(layer.bias, draw(*layer.bias.shape) * bias_gain)
            if name in CENTRED:
                layer.register_forward_hook(_centre)
    images = calibration_images(draw, N_CALIBRATION, backbone.image_size)
    tokens = backbone.double().trunk(images, 0)
    for block in tail.blocks:
        tokens = block(tokens)
    backbone.float()
    return tail, tokens


# ---------------------------------------------------------------- calibration
def calibration_images(draw: Draw, n: int, side: int) -> Float[Tensor, "images 3 side side"]:
    """In the networks' input units: an elliptic blob on a gradient, under noise; all of it random."""

    def uniform(channels: int = 1) -> Tensor:
        """Within −1 … 1, [n, channels, 1, 1]."""
        return torch.erf(draw(n, channels, 1, 1) / math.sqrt(2))

    at = torch.linspace(-1, 1, side, dtype=torch.float64)
    y, x = torch.meshgrid(at, at, indexing="ij")
    ground = 1.5 * uniform(3) + 0.5 * (uniform(3) * x + uniform(3) * y)
    angle, u, v = math.pi * uniform(), x - 0.4 * uniform(), y - 0.4 * uniform()
    long, wide = 0.45 + 0.3 * uniform(), 0.45 + 0.3 * uniform()
    inside = ((u * angle.cos() + v * angle.sin()) / long) ** 2 + ((v * angle.cos() - u * angle.sin()) / wide) ** 2 < 1
    image = torch.where(inside, 1.8 * uniform(3), ground)
    return image + 0.1 * draw(n, 3, side, side)


def _centre(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook: set the layer's bias so that the batch's mean output at the class token is zero."""
    mean = output[:, 0].mean(dim=0)
    cast(nn.Linear, layer).bias.data -= mean
    return output - mean


def _calibrate_norm(tail: Tail, tokens: Tensor) -> Tensor:
    """Set the final layer norm's affine map so that its output has mean 0 and variance 1; tokens and output [N, D]."""
    norm = cast(nn.LayerNorm, tail.ln_post)
    plain: Tensor = norm(tokens)
    mean, deviation = plain.mean(dim=0), plain.std(dim=0)
    _fill(norm.weight, 1 / deviation)
    _fill(norm.bias, -mean / deviation)
    return (plain - mean) / deviation


def _whitening(final: Tensor, draw: Draw) -> Tensor:
    """[D, D]: maps the calibration outputs [N, D] to uncorrelated ones of equal variance, then turns them at random."""
    values, vectors = torch.linalg.eigh(final.T @ final / len(final))
    rotation: Tensor = torch.linalg.qr(draw(*vectors.shape)).Q
    # The floor keeps the directions that hold next to nothing from being blown up.
    return cast(Tensor, vectors @ torch.diag((values + 1e-3) ** -0.5) @ rotation)
