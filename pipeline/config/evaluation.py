"""The blocks `features`, `extract`, `calibrate` and `evaluate`: the store's format, how it is filled, and what is done with a
trained model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from pipeline.config.fits import Fit
from pipeline.config.section import LATER, Ascending, Positive, Section

CUTS = (20, 100)
"""Most training images of classes with few, and with medium many, of them; of those with more there are many."""


class Features(Section):
    """The feature store's format, part of its key."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format on disk. What reads images instead of a store rounds as it does."""
    shard_size: Positive = 1024
    """Images a shard."""


class Extract(Section):
    """How images become features. What changes features by less than their number format rounds is no part of their key."""

    fits = (
        Fit("data.colour_card", (False,), "reduces what is measured in", "decode", ("fast",)),
        Fit("data.scale_bar", (False,), "reduces what is measured in", "decode", ("fast",)),
        Fit(
            "backbone.takes_reduced",
            (True,),
            "spares nothing where an image is seen in several views, as pixels or by several networks",
            "decode",
            ("fast",),
            hint="backbone to one network with no views",
        ),
    )
    decode: Annotated[Literal["exact", "fast"], LATER] = "exact"
    """exact: JPEGs at their whole size. fast: at a half, a quarter or an eighth of it, without a rest, that leaves twice as many
    pixels as the network reads; it spares a third of the time and more, and makes features and trials of their own."""
    compile: Annotated[StrictBool, LATER] = False
    """On a GPU, compile the backbone for extraction (torch.compile): a minute once, for more images a second."""


class Calibrate(Section):
    """How a group's sigma comes about: fitted to the CRPS of validation groups, in-domain and out-of-domain apart."""

    fits = (Fit("data.truth", ("numbers",), "is of numbers: a class' probability is not calibrated", at=("emos", "spread")),)
    kind: Literal["scale", "emos", "spread"] = "scale"
    """scale: sigma alone, from what images of a group share and what is each one's own; emos: the mean by a line as well;
    spread: not calibrated, the sd over images, as the challenge's sample code does, to compare with."""


class Adapt(Section):
    """Test-time training on the images that are evaluated, without their truth."""

    epochs: Positive = 1
    """Passes over them."""
    lr: float = Field(1e-5, gt=0)
    """Learning rate, scaled for parts of the model as `optim.lr` is."""


class Evaluate(Section):
    """What is evaluated."""

    fits = (
        Fit("backbone.views.has_poses", (True,), "weighs poses", "tta", hint="backbone.views.poses to some"),
        Fit("model.head.adapts", (True,), "trains by gradient descent", "adapt"),
        Fit("data.truth", ("numbers",), "learns numbers that the model says", "adapt"),
        Fit("evaluate.inputs", ("features",), "learns from features", "adapt"),
        Fit("risk.kind", ("mean",), "knows no domains", "adapt"),
    )

    split: Literal["auto", "validation", "test"] = "auto"
    """auto: test where the data have one, else validation (which selected the epoch: marked as optimistic). Where whole species
    are held out (data.split.kind: species), validation: the test is opened on purpose."""
    inputs: Literal["features", "images"] = "features"
    """Predict from cached features, or from the images through the whole model: how far that differs is then told."""
    buckets: Annotated[tuple[int, int], Ascending, LATER] = CUTS
    """Where few, medium and many images of a class part: few up to the first number of training images, many above the second."""
    tta: Annotated[tuple[Annotated[float, Field(ge=0)], ...], LATER] = ()
    """Test-time augmentation: weights of the plain view and of each of backbone.views.poses in a prediction; []: the plain one
    alone."""
    adapt: Annotated[Adapt | None, LATER] = None
    """Train on what the model says of the evaluated images before they are predicted (transductive); figures are then labelled as
    adapted wherever they stand. null: not."""
    gallery: Annotated[Literal["stage", "all"], LATER] = "stage"
    """Of retrieval, what the full gallery holds beside the images of the stage: the texts of their classes, or of all classes."""
