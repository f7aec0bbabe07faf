"""What a method needs, estimated: bytes of its features and models on disk, and of a GPU's memory. Loads no torch.

From a backbone's measures (`hashes.WeightsRecord`) and the configuration, whose blocks say what they cost.
"""

import re
from dataclasses import dataclass

from pipeline.config.encoder import Encoder
from pipeline.config.measures import Measures
from pipeline.config.trial import Config
from pipeline.features.kinds import KINDS
from pipeline.features.memory import SHARE

NUMBER = {"bf16": 2, "fp32": 4}
LEARNED = 16
"""Bytes of a trained parameter: itself in fp32, its gradient, and Adam's two moments."""
CHECKPOINT = 16
"""Bytes of a trained parameter in a checkpoint: itself, its best value, and two moments."""
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


@dataclass(frozen=True)
class Texts:
    """The texts that a head reads beside images."""

    tower: Measures
    n: int
    """How many distinct ones there are."""


# ---------------------------------------------------------------- disk
def features_bytes(config: Config, weights: Measures, n_images: int, texts: Texts | None = None) -> int:
    """Size of the feature store, and of that of the texts."""
    n = n_images * _numbers(config, weights) + (texts.n * _text_numbers(config, texts) if texts else 0)
    return n * NUMBER[config.features.dtype]


def model_bytes(config: Config, weights: Measures, texts: Texts | None = None) -> int:
    """Size of a trial's model."""
    return NUMBER["fp32"] * trained_parameters(config, weights, texts)


def _numbers(config: Config, weights: Measures) -> int:
    """Numbers in one image's features."""
    return KINDS[config.model.encoder.reads].n_numbers(weights)


def _text_numbers(config: Config, texts: Texts) -> int:
    """Numbers in one text's features."""
    return KINDS[config.model.text.reads].n_numbers(texts.tower)


# ---------------------------------------------------------------- parameters
def trained_parameters(config: Config, weights: Measures, texts: Texts | None = None) -> int:
    """Parameters that training changes: encoders, embeddings of names, attention and head."""
    model, encoder, head = config.model, config.model.encoder, config.model.head
    seen, views = encoder.embedding_width(weights.embed_dim), config.backbone.views
    embedding = model.fuse.width(seen, views)
    n_targets = len(config.data.targets) or 2  # how many classes there are, the data tell
    in_head = head.n_parameters(embedding, n_targets)
    in_names = 2 * embedding**2 * (model.domain_embedding + model.species_embedding)
    in_attention = 2 * embedding * ATTENTION if model.pool == "attention" else 0
    in_text = model.text.n_trained(texts.tower) if texts else 0
    in_fuse = model.fuse.n_parameters(seen, views)
    return encoder.n_trained(weights) + in_text + in_fuse + in_head + in_names + in_attention


# ---------------------------------------------------------------- a GPU's memory
def training_bytes(
    config: Config, weights: Measures, n_images: int, memory: int | None = None, texts: Texts | None = None
) -> int:
    """Memory that training takes on a GPU with so much of it: features lie there only if they fit (`features/bank.py`)."""
    features, residence = features_bytes(config, weights, n_images, texts), config.resources.residence
    there = residence == "device" or (residence == "auto" and memory is not None and features <= SHARE * memory)
    model, trained = config.model, trained_parameters(config, weights, texts)
    frozen = model.encoder.n_frozen(weights) + (model.text.n_frozen(texts.tower) if texts else 0)
    copies = NUMBER["bf16"] * (trained + frozen) if config.train.precision == "bf16" else 0  # autocast's
    share = -(-config.train.batch_size // config.train.processes)
    images = share * (config.train.max_images if config.train.sample == "groups" else 1)  # a step's, at most
    kept, passing = _activations(config, model.encoder, weights, _numbers(config, weights), images)
    if texts:  # beside the images in a step, where each distinct text is read once, and after them in validation
        of_texts = _activations(config, model.text, texts.tower, _text_numbers(config, texts), min(images, texts.n))
        kept, passing = kept + of_texts[0], max(passing, of_texts[1])
    # The larger of what a step keeps for its backward pass and what a batch of validation takes on its way.
    parameters = LEARNED * trained + NUMBER["fp32"] * frozen + copies
    return parameters + max(kept, passing) + (features if there else 0) + OVERHEAD


def _activations(config: Config, encoder: Encoder, of: Measures, numbers: int, n: int) -> tuple[int, int]:
    """What an encoder keeps of a step's `n` inputs for its backward pass, and what a batch of validation takes on its way."""
    fp32, again = config.train.precision == "fp32", config.resources.gradient_checkpointing
    batch = max(PREDICTION_BATCH // of.n_views, 1)
    return n * encoder.kept_bytes(of, numbers, fp32, again), batch * encoder.passing_bytes(of, numbers)


def extraction_bytes(config: Config, weights: Measures, texts: Texts | None = None) -> int:
    """Memory that extraction takes on a GPU: the whole backbone, and a batch on its way through it; or the text tower, later."""
    return max(_extraction_bytes(config, tower) for tower in (weights, *([texts.tower] if texts else [])))


def _extraction_bytes(config: Config, tower: Measures) -> int:
    batch = config.resources.extract_batch * tower.passing_bytes()
    return (NUMBER["fp32"] + NUMBER["bf16"]) * tower.n_parameters + batch + OVERHEAD


def gpu_memory(gpu_type: str) -> tuple[int, int] | None:
    """Bytes of the smallest and of the largest GPU that a cluster may call so (`a100`, `a100_80gb`); None: not known."""
    name = gpu_type.lower()
    if said := re.search(r"(\d+)gb?$", name):
        return int(said[1]) * 10**9, int(said[1]) * 10**9
    plain = re.sub(r"[^a-z0-9]", "", name)
    known = [found for found in sorted(GPUS, key=len, reverse=True) if found in plain]
    return (GPUS[known[0]][0] * 10**9, GPUS[known[0]][1] * 10**9) if known else None
