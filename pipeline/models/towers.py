"""Models that embed images and classes in one space: two towers, tuned or as released, and few-shot heads on frozen ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.encoder import Encoder
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.models.base import Encoders, Facts, Features, Model, Predicted
from pipeline.models.learner import trained_state
from pipeline.models.metadata import Metadata

if TYPE_CHECKING:
    from pipeline.models.pairs.pair_loss import PairLoss
    from pipeline.models.prototypes import Prototypes

Embeddings = Float[Tensor, "inputs width"]


class TwoTowers(Model):
    """An encoder of images and one of texts, and for each loss the numbers that make logits: exp(scale) · similarity + bias.
    `classes` are the embeddings of the classes' texts, as `embed_classes` has left them."""

    normalize = True
    undecayed: ClassVar[tuple[str, ...]] = ("logit_scale", "logit_bias")
    classes_are_texts: ClassVar[bool] = True
    """Whether `classes` are nothing but what the text encoder makes of their texts."""
    similarity: str = "cosine"
    """What the first loss compares by."""
    most_of_a_scale: float = math.inf
    """What it keeps its scale below."""
    classes: Float[Tensor, "classes width"]

    def __init__(
        self, encoders: Encoders[nn.Module], blocks: Encoders[Encoder], n_classes: int, width: int, scale: Tensor, bias: Tensor
    ):
        """`scale` and `bias` [losses] as they start; of those that learn, parameters."""
        super().__init__()
        self.encoder, self.text_encoder = encoders
        self.blocks = blocks
        self.logit_scale, self.logit_bias = scale, bias
        self.register_buffer("classes", torch.zeros(n_classes, width))

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: Any) -> Self:
        model, head, text = config.model, config.model.head, facts.text
        assert text is not None
        pairs: PairLoss | None = config.loss.make(len(facts.targets)) if head.embeds_pairs else None
        n = pairs.n_scales if pairs else 1
        learns = head.learns_scale
        scale = nn.Parameter(torch.full((n,), text.logit_scale), requires_grad=learns)
        bias = nn.Parameter(torch.full((n,), text.logit_bias or 0.0), requires_grad=learns and text.logit_bias is not None)
        width = model.encoder.embedding_width(facts.embed_dim)
        made = cls(encoder, Encoders(model.encoder, model.text), len(facts.targets), width, scale, bias)
        if pairs:
            made.similarity, made.most_of_a_scale = pairs.similarity, pairs.most_of_a_scale
        return made

    def embed(self, features: Features) -> Embeddings:
        """Images → embeddings of length 1, in fp32."""
        return F.normalize(self.encoder(features).float(), dim=-1)

    def encode(self, features: Features) -> Embeddings:
        return self.embed(features)

    def embed_texts(self, features: Features) -> Embeddings:
        """Texts → embeddings of length 1, in fp32."""
        return F.normalize(self.text_encoder(features).float(), dim=-1)

    @property
    def log_scale(self) -> float:
        """The scale of the first loss as it compares by it."""
        return min(float(self.logit_scale.detach()[0]), self.most_of_a_scale)

    def predict(self, features: Features, metadata: Metadata | None = None) -> Predicted:
        said = self.embed(features)
        scale = math.exp(self.log_scale)
        ones, zeros = torch.ones_like(said), torch.zeros_like(said)
        return Predicted(said, ones, zeros, classes=self.classes.detach(), scale=scale, similarity=self.similarity)

    # ------------------------------------------------------------ on disk
    def own_state(self) -> dict[str, Tensor]:
        """Trained tensors but those that an encoder saves itself, the scales, and the classes' embeddings."""
        pairs = zip(("encoder.", "text_encoder."), self.blocks, strict=True)
        apart = tuple(prefix for prefix, block in pairs if block.has_own_files)
        state = {name: tensor for name, tensor in trained_state(self).items() if not name.startswith(apart)}
        scales = {"logit_scale": self.logit_scale.detach(), "logit_bias": self.logit_bias.detach()}
        return state | scales | {"classes": self.classes.detach()}

    def save_more(self, trial: TrialDir) -> None:
        self.blocks.image.save(self.encoder, trial.adapter)
        self.blocks.text.save(self.text_encoder, trial.text_adapter)


class TextClassifier(TwoTowers):
    """An image encoder, and a cosine classifier whose weights, `classes`, start at the embeddings of the classes' texts and
    learn. Only directions count, so no decay draws them to 0."""

    undecayed = ("classes",)
    classes_are_texts = False

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.classes = nn.Parameter(self.classes)

    def logits(self, embedded: Embeddings) -> Float[Tensor, "inputs classes"]:
        """Of images' embeddings: exp(scale) times the cosine with each class."""
        return self.logit_scale[0].exp() * embedded @ F.normalize(self.classes, dim=-1).T


class FewShot(Model):
    """A linear classifier of frozen embeddings, said as embeddings whose cosines, times `scale`, are its logits."""

    normalize = True
    centre: Float[Tensor, " width"]
    classes: Float[Tensor, "classes wider"]
    scale: Float[Tensor, ""]

    def __init__(self, n_classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("classes", torch.zeros(n_classes, width + 2))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: Any) -> Self:
        return cls(len(facts.targets), facts.embed_dim)

    def take(self, fitted: Prototypes) -> None:
        """What has been fitted."""
        self.centre.copy_(torch.from_numpy(fitted.centre))
        self.classes.copy_(torch.from_numpy(fitted.as_embeddings()))
        self.scale.fill_(fitted.scale)

    def predict(self, features: Features, metadata: Metadata | None = None) -> Predicted:
        """As `Prototypes.embedded` has it: [B, E + 2]."""
        x = F.normalize(F.normalize(features.float(), dim=-1) - self.centre, dim=-1)
        ends = x.new_tensor([1.0, 0.0]).expand(len(x), 2)
        said = torch.cat([x, ends], dim=1) / 2**0.5
        return Predicted(said, torch.ones_like(said), torch.zeros_like(said), classes=self.classes, scale=float(self.scale))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(state)
