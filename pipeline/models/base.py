"""What every trained model is to the stages, whatever fits it: it predicts, and knows its files and how it is exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config.trial import Config
from pipeline.config.views import Views
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError
from pipeline.metrics.groups import SCALE
from pipeline.metrics.sums import Sums
from pipeline.models.metadata import Metadata, Names

Features = Float[Tensor, "images ..."]
"""What an encoder reads: embeddings, tokens or images."""


E = TypeVar("E")


class Encoders(NamedTuple, Generic[E]):
    """Something of both towers: their encoders, or the blocks that these were built by."""

    image: E
    text: E


@dataclass(frozen=True)
class TextFacts:
    """What the part of a model that reads texts was built for."""

    base_weights: str
    """sha256 of the text tower."""
    cut: int | None
    """First block of its tail; None where there is none."""
    feature_key: str
    logit_scale: float
    """Of the pretrained model: the logarithm of what cosines are multiplied by."""
    logit_bias: float | None
    """None where the model has none."""


@dataclass(frozen=True)
class Facts:
    """What a model was built for."""

    targets: tuple[str, ...]
    names: Names
    """What training images were called, in the order of the embeddings' rows."""
    embed_dim: int
    """Width of the backbone's pooled embedding."""
    base_weights: str
    """sha256 of the backbone's image tower."""
    cut: int | None
    """First block of the tail; None where there is no tail."""
    feature_key: str
    auxiliary: tuple[str, ...] = ()
    """Labels that are learnt beside the targets, and predicted behind them."""
    text: TextFacts | None = None
    """None where no texts are read."""
    beside: tuple[int, ...] = ()
    """Of each column of what is learnt beside numbers: how many names there are; 0: it holds numbers."""

    @property
    def learnt(self) -> tuple[str, ...]:
        """The columns of the data's table that the model learns, in the order of its predictions."""
        return self.targets + self.auxiliary


@dataclass(frozen=True)
class Predicted:
    """What a model says of images, in the targets' own units."""

    mean: Float[Tensor, "images targets"]
    variance: Float[Tensor, "images targets"]
    log_weights: Float[Tensor, "images targets"]
    trust: Float[Tensor, "images targets"] | None = None
    """How far it is to be relied on, within 0 … 1 (`models/novelty.py`); None: wholly, or nobody can tell."""
    classes: Float[Tensor, "classes width"] | None = None
    """Where what is said of an image is its embedding, `mean` [images, width]: the embeddings that it is compared with, of each
    class; the same for all images."""
    scale: float = SCALE
    """What cosines with these, or what `similarity` makes of them, are multiplied by for probabilities."""
    similarity: str = "cosine"
    """By its name in `metrics/similarity.py`."""

    def cpu(self) -> Predicted:
        trust, classes = (None if each is None else each.cpu() for each in (self.trust, self.classes))
        numbers = (self.mean.cpu(), self.variance.cpu(), self.log_weights.cpu())
        return Predicted(*numbers, trust, classes, self.scale, self.similarity)

    def values(self) -> Float[Tensor, "images targets"]:
        """What is said of each target: its number, or the class's probability; of embeddings the cosine with the class."""
        if self.classes is None:
            return self.mean
        return functional.normalize(self.mean, dim=-1) @ functional.normalize(self.classes, dim=-1).T


def mean_of(said: Sequence[Predicted], weights: Sequence[float]) -> Predicted:
    """The weighted mean of what is said of the same images, seen otherwise each time."""
    shares = [weight / sum(weights) for weight in weights]

    def mean(name: str) -> Tensor:
        return torch.stack([share * getattr(each, name) for share, each in zip(shares, said, strict=True)]).sum(0)

    trust = None if said[0].trust is None else mean("trust")
    return Predicted(mean("mean"), mean("variance"), mean("log_weights"), trust)


class Model(nn.Module, ABC):
    """What a head makes. Unless a kind of model says otherwise, all its parameters and buffers are saved, and nothing else."""

    normalize: bool = False
    """Whether it reads the embedding divided by its length."""
    views: Views = Views()
    """What its features are of."""
    tta: Sequence[float] = ()
    """Weights of the plain pose and of others in a prediction; (): the plain one alone."""
    sums: Sums | None = None
    """Which targets add up in what it says."""
    reads_images: ClassVar[bool] = True
    has_gradients: ClassVar[bool] = True
    """Whether what it says can be differentiated by its features."""
    trained: frozenset[str] = frozenset()
    """Of a model that was loaded: the parameters that training changed."""
    held: bool = False
    """Whether the encoder is held as it is while the rest learns."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Parameters that no weight decay draws to 0."""

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: nn.Module) -> Self:
        """A new one; `encoder` makes the embedding of features: of a head that reads texts, `Encoders` of both towers."""
        raise NotImplementedError

    def encode(self, features: Features) -> Float[Tensor, "images width"]:
        """The embedding that the head reads, before it is normalised."""
        return features

    def over_poses(
        self, say: Callable[[Features, Metadata | None], Predicted], features: Features, metadata: Metadata | None
    ) -> Predicted:
        """What is said of images, of which features may be of several poses [B, V, …]: by `tta` of several, else of the plain
        one. What adds up does so to the last digits of double precision."""
        if self.views.are_plain:
            return self._added_up(say(features, metadata))
        poses = features.unflatten(1, (-1, self.views.n_crops)).unbind(1)
        weighed = [(pose, weight) for pose, weight in zip(poses, self.tta or (1.0,), strict=False) if weight]
        return self._added_up(mean_of([say(pose, metadata) for pose, _ in weighed], [weight for _, weight in weighed]))

    def _added_up(self, said: Predicted) -> Predicted:
        """The wholes anew from their parts: single precision, and limits of what a network may say, leave a gap between them."""
        if self.sums is None:
            return said
        mean, n = said.mean.double(), len(self.sums.targets)
        matrix = torch.from_numpy(self.sums.matrix).to(mean.device)
        return replace(said, mean=torch.cat([mean[:, self.sums.places] @ matrix.T, mean[:, n:]], dim=1))

    @abstractmethod
    def predict(self, features: Features, metadata: Metadata | None = None) -> Predicted:
        """What it says of images, from features and what is known of them (None: nothing)."""

    # ------------------------------------------------------------ on disk
    def own_state(self) -> dict[str, Tensor]:
        """The tensors that `model.safetensors` holds."""
        return dict(self.state_dict())

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `own_state` was of the model that was saved."""
        self.load_state_dict(state, strict=False)

    def save_more(self, trial: TrialDir) -> None:
        """Write what a trial's folder holds beside `model.safetensors`."""

    def load_more(self, trial: TrialDir) -> None:
        """Read it again. Raises WorkError where it is missing or damaged."""

    # ------------------------------------------------------------ export
    def spec(self) -> dict[str, Any]:
        """What a submission's `network.py` makes it again from: a `kind` that it knows, and that kind's options."""
        raise UserError(f"nothing says how a {type(self).__name__} is made again on a challenge's platform: export another trial")

    def plain_state(self) -> Mapping[str, Tensor]:
        """Its tensors under the names that the submission's code has for them (a tail of the backbone's apart)."""
        return self.state_dict()
