"""What a method needs, estimated: bytes of its features and models on disk, and of a GPU's memory. Loads no torch.

From a backbone's record (`records.WeightsRecord`) and the configuration. Parameters are counted; what a block keeps while
it computes was measured once (open_clip's ViT-B-16, torch 2) and grows with images, tokens and width.
"""

from __future__ import annotations

import re
from math import isqrt

from pipeline.config.encoder import Lora
from pipeline.config.identity import token_kind
from pipeline.config.training import Train
from pipeline.config.trial import Config
from pipeline.features.hashes import WeightsRecord
from pipeline.features.memory import SHARE

NUMBER = {"bf16": 2, "fp32": 4}
LEARNED = 16
"""Bytes of a trained parameter: itself in fp32, its gradient, and Adam's two moments."""
CHECKPOINT = 16
"""Bytes of a trained parameter in a checkpoint: itself, its best value, and two moments."""
BLOCK = 12
"""Parameters of a transformer block in units of width²: attention's four projections, a perceptron four times as wide."""
SIDES = {"q_proj": 2, "k_proj": 2, "v_proj": 2, "out_proj": 2, "c_fc": 5, "c_proj": 5}
"""Width in plus width out of each projection, in units of width: what an adapter of rank 1 has there."""
KEPT = {"tail": (40, 64), "lora": (46, 72), "dora": (100, 140)}
"""Bytes that a block keeps for the backward pass in bf16 and in fp32, for each image, token and unit of width."""
PASSING = {"tail": 30, "lora": 57, "dora": 108}
"""Bytes at the height of a forward pass in fp32 that keeps nothing, for each image, token and unit of width."""
KEPT_OF_IMAGE, PASSING_OF_IMAGE = (560, 870), 64
"""The same of a network without such blocks, for each image and number of its input: what the hungriest of those measured takes
(timm's resnet18, resnet50, efficientnet_b0, convnext_tiny, densenet121, at 224 pixels)."""
PREDICTION_BATCH, ATTENTION = 512, 64
"""As `training/samples.py` and `models/pooling.py` have them, which load torch (a test holds each two together)."""
OVERHEAD = 1 << 30
"""CUDA's own memory, and what torch's allocator holds and does not use."""
GPUS = {
    "k80": (12, 12), "p100": (12, 16), "t4": (16, 16), "v100s": (32, 32), "v100": (16, 32), "a100": (40, 80), "a10": (24, 24),
    "a16": (16, 16), "a30": (24, 24), "a40": (48, 48), "l4": (24, 24), "l40": (48, 48), "l40s": (48, 48), "h100": (80, 94),
    "h200": (141, 141), "gh200": (96, 144), "b200": (180, 192), "mi100": (32, 32), "mi210": (64, 64), "mi250": (64, 64),
    "mi300": (128, 192), "1080ti": (11, 11), "2080ti": (11, 11), "3080": (10, 12), "3090": (24, 24), "4090": (24, 24),
    "5090": (32, 32), "titanv": (12, 12), "titanrtx": (24, 24), "a4000": (16, 16), "a4500": (20, 20), "a5000": (24, 24),
    "a5500": (24, 24), "a6000": (48, 48), "rtx6000": (24, 48), "rtxpro6000": (96, 96),
}  # fmt: skip
"""GB of the smallest and of the largest model of a type, by letters and digits in Slurm's name for it."""


# ---------------------------------------------------------------- disk
def features_bytes(config: Config, weights: WeightsRecord, n_images: int) -> int:
    """Size of the feature store."""
    return n_images * _numbers(config, weights) * NUMBER[config.features.dtype]


def model_bytes(config: Config, weights: WeightsRecord) -> int:
    """Size of a trial's model."""
    return NUMBER["fp32"] * trained_parameters(config, weights)


def checkpoint_bytes(config: Config, weights: WeightsRecord) -> int:
    """What stands beside it while a trial trains."""
    return CHECKPOINT * trained_parameters(config, weights)


def _numbers(config: Config, weights: WeightsRecord) -> int:
    """Numbers in one image's features: of a cut, those of the patch tokens and of the class token."""
    kind = token_kind(config)[0]
    if kind == "images":
        return weights.n_inputs
    tokens = {"pooled": 0, "patches": weights.n_patches, "cut": weights.n_patches + 1}[kind]
    return tokens * weights.width or weights.embed_dim


# ---------------------------------------------------------------- parameters
def trained_parameters(config: Config, weights: WeightsRecord) -> int:
    """Parameters that training changes: encoder, embeddings of names, attention and head."""
    model, encoder, head = config.model, config.model.encoder, config.model.head
    embedding = encoder.channels if encoder.kind == "patch_convs" else weights.embed_dim
    n_targets = len(config.data.targets) or 2  # how many classes there are, the data tell
    in_head = head.n_parameters(embedding, n_targets)
    in_names = 2 * embedding**2 * (model.domain_embedding + model.species_embedding)
    in_attention = 2 * embedding * ATTENTION if model.pool == "attention" else 0
    return _in_encoder(config, weights) + in_head + in_names + in_attention


def _in_encoder(config: Config, weights: WeightsRecord) -> int:
    encoder, square = config.model.encoder, weights.width * weights.width
    if encoder.kind == "finetuned":
        return encoder.blocks * BLOCK * square
    if encoder.kind == "lora":
        return encoder.blocks * encoder.r * weights.width * sum(SIDES[target] for target in encoder.targets)
    if encoder.kind == "patch_convs":
        rest = max(1, isqrt(weights.n_patches) - encoder.kernel + 1)
        return encoder.kernel * encoder.kernel * square + rest * rest * weights.width * encoder.channels
    return weights.n_parameters if encoder.kind == "end_to_end" else 0


# ---------------------------------------------------------------- a GPU's memory
def training_bytes(config: Config, weights: WeightsRecord, n_images: int, memory: int | None = None) -> int:
    """Memory that training takes on a GPU with so much of it: features lie there only if they fit (`features/bank.py`)."""
    features, residence = features_bytes(config, weights, n_images), config.resources.residence
    there = residence == "device" or (residence == "auto" and memory is not None and features <= SHARE * memory)
    return _model_and_batch(config, weights) + (features if there else 0) + OVERHEAD


def _model_and_batch(config: Config, weights: WeightsRecord) -> int:
    encoder = config.model.encoder
    precision = config.train.precision
    blocks = encoder.blocks if encoder.kind in ("finetuned", "lora") else 0
    method = ("dora" if encoder.dora else "lora") if isinstance(encoder, Lora) else "tail"
    trained = trained_parameters(config, weights)
    frozen = blocks * BLOCK * weights.width**2 if encoder.kind == "lora" else 0
    copies = NUMBER["bf16"] * (trained + frozen) if precision == "bf16" else 0  # autocast's
    if encoder.kind == "end_to_end":
        return LEARNED * trained + copies + _whole_pass(config, weights)
    numbers = _numbers(config, weights)
    kept = _images_a_step(config.train) * numbers * blocks * KEPT[method][precision == "fp32"]
    passing = PREDICTION_BATCH * numbers * PASSING[method]  # validation
    return LEARNED * trained + NUMBER["fp32"] * frozen + copies + max(kept, passing)


def _whole_pass(config: Config, weights: WeightsRecord) -> int:
    """What a whole backbone keeps of a step, or passes through in validation."""
    fp32 = config.train.precision == "fp32"
    tokens = (weights.n_patches + 1) * weights.width * weights.n_blocks
    kept = tokens * KEPT["tail"][fp32] if weights.n_blocks else weights.n_inputs * KEPT_OF_IMAGE[fp32]
    return max(_images_a_step(config.train) * kept, PREDICTION_BATCH * _passing(weights))


def _images_a_step(train: Train) -> int:
    """At most."""
    return train.batch_size * (train.max_images if train.sample == "groups" else 1)


def extraction_bytes(config: Config, weights: WeightsRecord) -> int:
    """Memory that extraction takes on a GPU: the whole backbone, and a batch on its way through it."""
    batch = config.resources.extract_batch * _passing(weights)
    return (NUMBER["fp32"] + NUMBER["bf16"]) * weights.n_parameters + batch + OVERHEAD


def _passing(weights: WeightsRecord) -> int:
    """Bytes of an image on its way through the whole backbone."""
    tokens = (weights.n_patches + 1) * weights.width
    return tokens * PASSING["tail"] if weights.n_blocks else weights.n_inputs * PASSING_OF_IMAGE


def gpu_memory(gpu_type: str) -> tuple[int, int] | None:
    """Bytes of the smallest and of the largest GPU that a cluster may call so (`a100`, `a100_80gb`); None: not known."""
    name = gpu_type.lower()
    if said := re.search(r"(\d+)gb?$", name):
        return int(said[1]) * 10**9, int(said[1]) * 10**9
    plain = re.sub(r"[^a-z0-9]", "", name)
    known = [found for found in sorted(GPUS, key=len, reverse=True) if found in plain]
    return (GPUS[known[0]][0] * 10**9, GPUS[known[0]][1] * 10**9) if known else None
