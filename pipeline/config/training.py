"""The blocks `optim`, `train`, `select`: how a model learns, and which epoch's weights are kept."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.config.batches import Batches, Shuffled
from pipeline.config.fits import Fit
from pipeline.config.kinds import kind_of
from pipeline.config.section import LATER, BelowOne, Positive, Section


class Optim(Section):
    """Optimiser."""

    kind: Literal["adam", "adamw"] = "adam"
    lr: float = Field(1e-4, gt=0)
    """Base learning rate; parts of the model scale it (`encoder.lr_scale`, `head.lr_scale`, …)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled with adamw, L2 with adam."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: Annotated[float, Field(gt=0), LATER] = 1e-8
    """What is added to the root of the second moment."""
    decays: Annotated[Literal["all", "matrices"], LATER] = "all"
    """What decays: every parameter, or none of fewer than two dimensions (biases, norms, the scale of similarities)."""
    clip: float | None = Field(None, gt=0)
    """Clip the gradient's global norm to this."""
    ema: Annotated[BelowOne, LATER] = 0.0
    """Decay of a moving average of the weights, which then is what is validated, kept and exported; 0: none. It begins faster:
    step n decays by (1 + n) / (10 + n) at most."""


class HeadFirst(Section):
    """First so many epochs in which the encoder is held as it is and all else learns."""

    epochs: Positive = 5
    """Of `train.epochs`; the schedule begins anew behind them."""
    lr: float = Field(1e-4, gt=0)
    """In them, instead of `optim.lr`."""


class Train(Section):
    """The training loop."""

    fits = (
        Fit("select.epoch", ("best",), "waits for a better epoch", "patience"),
        Fit("model.encoder.learns", (True,), "holds what does not learn", "head_first"),
        Fit("model.head.reads_texts", (False,), "holds no towers", "head_first"),
        Fit("model.head.embeds_pairs", (False,), "would compare too few images", "accumulates", called="accumulate"),
        Fit("model.head.descends", (True,), "makes steps of several batches", "accumulates", called="accumulate"),
    )
    epochs: Positive = 500
    samples: Annotated[Positive | None, LATER] = None
    """Train until so many images were seen, rounded up to whole epochs, whatever `epochs` says; null: for `epochs`."""
    batch_size: Positive = 64
    """Images, or with `sample: groups` groups, a step."""
    accumulate: Annotated[Positive, LATER] = 1
    """Batches a step: their gradients are those of one batch so many times as large, in the memory of one."""
    head_first: Annotated[HeadFirst | None, LATER] = None
    """Train the head before the encoder learns too; null: all from the start."""
    sample: Literal["images", "groups"] = "images"
    """What is drawn and what the loss is of: images, or groups, each forecast from a set of its images."""
    max_images: Positive = 16
    """With `sample: groups`: how many images of a group are drawn at most, anew in each epoch."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: forward and backward under autocast, weights and optimiser in fp32. Evaluation is always fp32."""
    processes: Positive = 1
    """Of a head that tunes two towers: processes that share out each batch, with a GPU each; `batch_size` is of all of them. It
    makes no other model (but for rounding, and what dropout draws), so it is no part of a trial's identity, and all trials of an
    experiment share it. A job of training asks for `resources.train` so many times."""
    batches: Annotated[Batches, LATER, *kind_of(Batches)] = Shuffled()
    """Of a head that tunes two towers: which images make up a batch."""
    patience: Positive | None = None
    """Stop after this many epochs without a better validation metric; null: train to the end."""

    @property
    def accumulates(self) -> bool:
        """Whether a step is of several batches."""
        return self.accumulate > 1

    @property
    def held_epochs(self) -> int:
        """How many epochs the encoder is held for."""
        return self.head_first.epochs if self.head_first else 0

    @model_validator(mode="after")
    def _trains_the_encoder(self) -> Self:
        if self.held_epochs >= self.epochs:
            raise ValueError(f"head_first.epochs is {self.held_epochs}: less than epochs, which is {self.epochs}")
        return self


class Select(Section):
    """Which epoch's weights are kept, and by what the best is known."""

    fits = (
        Fit(
            "model.head.takes_folds",
            (True,),
            "fits again and again, for which model.head.kind {model.head.kind} is not made",
            "folds",
        ),
        Fit("evaluate.split", ("auto", "test"), "fits validation images too, which would be evaluated", "folds"),
    )
    epoch: Literal["best", "last"] = "best"
    """best: by `metric` on validation. last: none is chosen, and validation groups, which calibrate, are not fitted to."""
    metric: str | None = None
    """A figure of the task, on validation. Of numbers: r2, the mean over targets of the group R², or MAE, of the images'. Of
    classes, of images: roc_auc, average_precision, balanced_accuracy, log_loss. null: the task's first one (r2, roc_auc)."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Of heads that are classifiers: fit on training and validation images together, and choose and score by predictions for
    images left out, in so many folds grouped by group and stratified by class. null: choose and score on validation."""
