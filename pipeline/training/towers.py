"""What two towers learn from: batches of images, each with one of its class's texts, compared with each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config.trial import Config
from pipeline.data.image_augmentation import augment_images
from pipeline.device import to_device
from pipeline.errors import UserError
from pipeline.metrics.buckets import bucket_of
from pipeline.models.pairs.pair_loss import Batch, PairLoss
from pipeline.models.towers import TwoTowers
from pipeline.training import augmentation as aug
from pipeline.training import loop
from pipeline.training.processes import ALONE, Processes
from pipeline.training.run import Choice, Fitted, Run
from pipeline.training.samples import PREDICTION_BATCH, Samples, TextSamples, predict

Rows = Int64[np.ndarray, " images"]
CHUNK = 1024
"""Rows of the matrix of pairs that are computed at a time, where a batch has more."""


def fit(model: TwoTowers, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Tune `model` in place, and leave it with the weights of the epoch that `select` says and the classes' embeddings by them.
    Raises what `check_shares` and what `loop.descend` raise."""
    texts, size = of_texts(train), run.config.train.batch_size
    loss: PairLoss = run.config.loss.make(train.n_targets)
    loss.prepare(texts.facts.to(train.targets.device), size)
    check_shares(model, run.processes)
    lesson = Lesson(model, train, validation, run.config, loss, run.processes)
    progress = loop.descend(model, lesson, run)
    embed_classes(model, texts)
    return Fitted(progress)


def check_shares(model: nn.Module, processes: Processes) -> None:
    """Raises UserError for a network of which a share of a batch is embedded otherwise than in the whole."""
    if processes.size > 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError("the network has batch norms, which read a whole batch at once: set train.processes=1")


def of_texts(samples: Samples) -> TextSamples:
    """The texts of the samples' images and classes, which a head that reads them has been given."""
    assert samples.texts is not None
    return samples.texts


@torch.inference_mode()
def embed_classes(model: TwoTowers, texts: TextSamples) -> None:
    """Let the model know its classes by their texts: evaluation mode, fp32."""
    model.eval()
    parts = [model.embed_texts(texts.bank.gather(rows).float()) for rows in texts.of_class.split(PREDICTION_BATCH)]
    model.classes.copy_(torch.cat(parts))


def embedded_classes(model: TwoTowers, texts: TextSamples, processes: Processes) -> Float[Tensor, "classes width"]:
    """By a model in training as it is now, to the bit the same in all processes."""
    embed_classes(model, texts)
    processes.same(model.classes)
    model.train()
    return model.classes


@dataclass(frozen=True)
class Drawn:
    """What batches of training images are drawn by (`config/batches.py`)."""

    labels: Rows
    views: Rows
    """The number of each image's view; -1 where it is not known."""
    counts: Int64[np.ndarray, " classes"]
    """Training images of each class."""
    tree: Float[np.ndarray, "classes classes"] | None
    """Depth of the most recent common ancestor of each two classes."""
    embedded: Callable[[], Float[Tensor, "classes width"]]
    """The classes' embeddings, as the model makes them now."""

    def buckets(self, cuts: tuple[int, int]) -> Rows:
        """Whether each image's class has few, medium or many training images, parted at these numbers."""
        return bucket_of(self.counts, cuts)[self.labels]

    def likeness(self) -> Float[np.ndarray, "classes classes"]:
        """Cosines of the classes' embeddings."""
        classes = self.embedded()
        return (classes @ classes.T).double().cpu().numpy()


@dataclass
class Lesson:
    """Images and texts, as `loop.Lesson` has it."""

    model: TwoTowers
    train: Samples
    validation: Samples
    config: Config
    compare: PairLoss
    processes: Processes = ALONE
    """Who shares out the batches."""
    log_weights: Float[Tensor, " domains"] = field(default_factory=lambda: torch.zeros(0))

    @cached_property
    def drawn(self) -> Drawn:
        texts = of_texts(self.train)
        labels, counts = self.train.truth, texts.facts.counts.cpu().numpy().astype("int64")
        tree = None if texts.facts.tree is None else texts.facts.tree.nan_to_num(-1.0).double().cpu().numpy()
        embedded = partial(embedded_classes, self.model, texts, self.processes)  # (not of this lesson, which would hold itself)
        return Drawn(labels, texts.views, counts, tree, embedded)

    def batches(self, streams: aug.Streams) -> tuple[int, list[Rows]]:
        """All are drawn before the first is learnt from: how many there are depends on the draw."""
        drawn = list(self.config.train.batches.draw(self.drawn, self.config.train.batch_size, streams.choices))
        return len(drawn), drawn

    def loss(self, batch: Rows, epoch: int, streams: aug.Streams) -> tuple[Tensor, int]:
        rows, mine = torch.from_numpy(batch), self.processes.part(len(batch))
        features = self._features(rows, mine, epoch, streams)
        of_image = of_texts(self.train).of_image[rows]
        chosen = torch.from_numpy(streams.choices.integers(of_image.shape[1], size=len(rows)))
        texts = of_image[torch.arange(len(rows)), chosen]
        everyone = self._gathered(*self._embedded(features, texts[mine]), rows)
        chunk = CHUNK if mine.stop - mine.start > CHUNK else None
        sums = self.compare.sums(everyone[mine], everyone, self.model.logit_scale, self.model.logit_bias, chunk)
        return self.compare.joined(self.processes.total(sums), len(rows)), len(rows)

    def told(self) -> dict[str, float]:
        return {}

    @torch.inference_mode()
    def validate(self) -> tuple[float | None, float]:
        """The loss is of whole batches, the same in every epoch, each image beside its class's text of evaluation. They are cut
        from an order that is drawn: that of a folder, class by class, would make batches of few classes."""
        embed_classes(self.model, of_texts(self.validation))
        said = predict(self.model, self.validation)
        metric = Choice.of(self.config).score(self.validation, said)
        order = torch.from_numpy(of_texts(self.validation).order)
        image, classes = torch.from_numpy(said.mean)[order], self.validation.targets.codes[:, 0].cpu()[order]
        text, size = self.model.classes.cpu()[classes], min(self.config.train.batch_size, len(classes))
        parts = [slice(start, start + size) for start in range(0, len(classes) - size + 1, size)]
        device = self.model.classes.device
        losses = [self._report(image[part].to(device), text[part].to(device), classes[part].to(device)) for part in parts]
        return metric, float(torch.stack(losses).mean())

    def _report(self, image: Tensor, text: Tensor, classes: Tensor) -> Tensor:
        batch = Batch.whole(image, text, classes)
        sums = self.compare.sums(batch, batch, self.model.logit_scale, self.model.logit_bias, None)
        return self.compare.joined(sums, len(batch), to_report=True)

    def _features(self, rows: Tensor, mine: slice, epoch: int, streams: aug.Streams) -> Tensor:
        """Of this process's images of a batch, augmented. What augments them is drawn for the whole batch, and so changes it."""
        augment = self.config.augment
        share = aug.strength(augment, epoch, self.config.train.epochs)
        if not (augment.images.is_on() or augment.noise):
            return self.train.select(rows[mine])[0]
        features = augment_images(self.train.select(rows)[0], augment.images, share, streams.choices)
        return aug.add_noise(features, share * augment.noise, streams.noise)[mine]

    def _embedded(self, features: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of images and of their texts, of which each that is there is embedded once."""
        distinct, places = texts.unique(return_inverse=True)
        device = features.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            image = self.model.embed(features)
            text = self.model.embed_texts(of_texts(self.train).bank.gather(distinct).float())
        return image, text[to_device(places, device)]

    def _gathered(self, image: Tensor, text: Tensor, rows: Tensor) -> Batch:
        """The whole batch, from this process's embeddings and those of the others."""
        there = to_device(rows, image.device)
        images, of_images = self.processes.gather(len(rows), image, text)
        return Batch.whole(images, of_images, self.train.targets.codes[there, 0], there)
