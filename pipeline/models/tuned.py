"""The two towers of a trial as it has tuned them, behind the interface of pretrained ones: what embeds with a tower need not know
who made it. Adapters stay adapters, and the trunk that was frozen is the backbone's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from pipeline.backbones.base import Backbone, Tower
from pipeline.backbones.texts import TextTower
from pipeline.config.identity import token_kind
from pipeline.config.trial import Config
from pipeline.features.kinds import KINDS
from pipeline.models.towers import TwoTowers


class TunedImages(Backbone):
    """An image tower whose embeddings are of length 1."""

    def __init__(self, base: Backbone, model: TwoTowers, config: Config) -> None:
        super().__init__()
        self.base, self.model, self.config = base, model, config
        self.width = self.embed_dim = config.model.encoder.embedding_width(base.embed_dim)
        self.image_size, self.halves = base.image_size, base.halves

    def transform(self, image: Image.Image) -> Tensor:
        return self.base.transform(image)

    def transform_id(self) -> str:
        return self.base.transform_id()

    def embed(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images embed_dim"]:
        kind, blocks = token_kind(self.config, "image")
        return self.model.embed(KINDS[kind].compute(self.base, images, _cut(self.base, blocks)))


class TunedTexts(TextTower):
    """A text tower whose embeddings are of length 1."""

    def __init__(self, base: TextTower, model: TwoTowers, config: Config) -> None:
        super().__init__()
        self.base, self.model, self.config = base, model, config
        self.width = self.embed_dim = config.model.text.embedding_width(base.embed_dim)
        self.context_length = self.n_tokens = base.context_length

    def transform(self, text: str) -> Int[Tensor, " tokens"]:
        return self.base.transform(text)

    def transform_id(self) -> str:
        return self.base.transform_id()

    def embed(self, texts: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts embed_dim"]:
        kind, blocks = token_kind(self.config, "text")
        return self.model.embed_texts(KINDS[kind].compute(self.base, texts, _cut(self.base, blocks)))

    def trunk(self, texts: Int[Tensor, "texts tokens"], cut: int) -> Float[Tensor, "texts n_tokens marked"]:
        raise self._uncuttable()


def _cut(tower: Tower, blocks: int) -> int:
    return tower.cut_before(blocks) if blocks else 0


def embed_each(tower: Tower, inputs: list[Tensor], device: torch.device) -> Float[Tensor, "inputs embed_dim"]:
    """What a tower's `transform` gave of some inputs → their embeddings, of length 1, in fp32, on the CPU."""
    with torch.inference_mode():
        found = tower.to(device).embed(torch.stack(inputs).to(device))
    return torch.nn.functional.normalize(found.float(), dim=-1).cpu()
