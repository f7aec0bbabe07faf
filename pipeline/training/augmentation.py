"""The augmentations of cached features, in their order: image dropout (`sets.py`), images
(`data/image_augmentation.py`), mixup, domain and species dropout, noise.

What they decide is drawn on the CPU from one generator per epoch, so that a resumed run draws what an undisturbed one
would, and so that the GPU is never waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor

from pipeline.config.augment import Augment, Mixup
from pipeline.config.views import Views
from pipeline.device import to_device
from pipeline.models.learner import Learner, Rows, SpeciesEmbedding
from pipeline.models.metadata import Metadata

PLAIN = Mixup()


@dataclass(frozen=True)
class Streams:
    """One epoch's randomness: `choices` for decisions, `noise` for tensors drawn on the device."""

    choices: np.random.Generator
    noise: torch.Generator


def epoch_streams(seed: int, epoch: int, device: torch.device, process: int = 0) -> Streams:
    """The streams of one epoch, a function of (seed, epoch) alone. Also seeds torch's global one, which dropout layers use: of
    several processes each has its own."""
    choices, noise, layers = np.random.SeedSequence([seed, epoch]).spawn(3)
    torch.manual_seed((int(layers.generate_state(1, np.uint64)[0]) >> 1) + process)
    generator = torch.Generator(device).manual_seed(int(noise.generate_state(1, np.uint64)[0]) >> 1)
    return Streams(np.random.default_rng(choices), generator)


def strength(augment: Augment, epoch: int, epochs: int) -> float:
    """Share of full strength in `epoch` (from 0): min(epoch / (warmup·epochs), 1)."""
    ramp = augment.warmup * epochs
    return min(epoch / ramp, 1.0) if ramp > 0 else 1.0


def draw_poses(
    features: Float[Tensor, "images ..."], views: Views, probability: float, rng: np.random.Generator
) -> Float[Tensor, "images ..."]:
    """Of each image the views [B, C, …] of one pose, of those [B, V, …] that there are: with `probability` one of the others
    than the plain one. Nothing is drawn, and nothing changed, where there is one view."""
    if views.are_plain:
        return features
    poses = features.unflatten(1, (len(views.pose_names), views.n_crops))
    if not probability:
        return poses[:, 0]
    drawn = rng.integers(1, poses.shape[1], len(poses)) * (rng.random(len(poses)) < probability)
    rows = torch.arange(len(poses), device=features.device)
    return poses[rows, to_device(torch.from_numpy(drawn), features.device)]


def make_mix(
    n: int, alpha: float, rng: np.random.Generator, device: torch.device | str = "cpu", how: Mixup = PLAIN
) -> Mixing | None:
    """Mixing of a batch of `n` with a permutation of itself, λ ~ Beta(α, α); None where α is 0 (nothing to mix), or this batch
    is not to be mixed."""
    if alpha == 0 or (how.probability < 1 and rng.random() >= how.probability):
        return None
    share = float(rng.beta(alpha, alpha))
    share = max(share, 1 - share) if how.keeps_most else share
    return Mixing(share, 1 - share, to_device(torch.from_numpy(rng.permutation(n)), torch.device(device)))


@dataclass(frozen=True)
class Mixing:
    """Rows of a batch, each with another."""

    share: float
    """How much of a mixed row is the row itself."""
    rest: float
    """How much is the other: 1 − share."""
    order: Int64[Tensor, " images"]
    """The other of each row."""

    def __call__(self, rows: Float[Tensor, "images ..."]) -> Float[Tensor, "images ..."]:
        return self.share * rows + self.rest * rows[self.order]


def drop_names(metadata: Metadata, model: Learner, augment: Augment, share: float, rng: np.random.Generator) -> Metadata:
    """Domains of a whole batch and species of images become unknown with the probabilities of `augment` times `share`.

    Nothing is drawn for what the model does not read.
    """
    if model.domain is not None:
        domain = drop_domain(metadata.domain, share * augment.domain_dropout, model.domain.unknown, rng)
        metadata = replace(metadata, domain=domain)
    if model.species is not None:
        metadata = drop_species(metadata, share * augment.species_dropout, model.species, rng)
    return metadata


def drop_domain(domains: Rows, probability: float, unknown: int, rng: np.random.Generator) -> Rows:
    """With `probability` the whole batch's domain rows become the unknown row."""
    return torch.full_like(domains, unknown) if probability > 0 and rng.random() < probability else domains


def drop_species(metadata: Metadata, probability: float, known: SpeciesEmbedding, rng: np.random.Generator) -> Metadata:
    """Each image's species becomes unknown with `probability`; of those that do the same share lose their genus too, so
    that a genus learns what to say of a species never seen, and the unknown genus of any other."""
    if probability == 0:
        return metadata
    species, genus = (
        to_device(torch.from_numpy(rng.random(len(metadata)) < probability), metadata.species.device) for _ in range(2)
    )
    return replace(
        metadata,
        species=metadata.species.masked_fill(species, known.species.num_embeddings - 1),
        genus=metadata.genus.masked_fill(species & genus, known.genus.num_embeddings - 1),
    )


def add_noise(features: Num[Tensor, "images ..."], sd: float, generator: torch.Generator) -> Num[Tensor, "images ..."]:
    """Gaussian noise of standard deviation `sd` on every feature."""
    if sd == 0:
        return features
    return features + sd * torch.randn(features.shape, generator=generator, device=features.device, dtype=features.dtype)
