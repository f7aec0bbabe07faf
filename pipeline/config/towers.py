"""The heads that embed images and classes in one space: of two towers that are tuned together, and of frozen ones that need no
training or little. They are of tasks of retrieval, whose classes are texts (`texts`)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fits import Fit
from pipeline.config.head import Head
from pipeline.config.section import implementation


class TextHead(Head):
    """A head that reads the texts of classes beside images: with an image it says its embedding, beside those of all classes."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("backbone.texts", ("pooled",), "reads texts, and {backbone.kind} has no text tower", "reads_texts"),
        Fit("model.normalize", (True,), "compares by cosine", "reads_texts"),
        Fit("model.pool", ("mean",), "embeds each image by itself", "reads_texts"),
        Fit("model.domain_embedding", (False,), "embeds what an image shows alone", "reads_texts"),
        Fit("model.species_embedding", (False,), "embeds what an image shows alone", "reads_texts"),
        Fit("train.sample", ("images",), "learns from images", "reads_texts"),
    )
    of = "classes"
    reads_texts = True
    embeds = True


class ContrastiveHead(TextHead):
    """Two towers tuned together: the embedding of an image is drawn to that of its text, by a loss of pairs."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit(
            "model.tunes_towers",
            (True,),
            "tunes towers, and both are frozen",
            "reads_texts",
            hint="model.encoder.kind or model.text.kind to what learns (or model.head.kind to zero_shot)",
        ),
        Fit("model.text.reads", ("pooled", "cut", "images"), "reads texts, which have no {model.text.reads}", "reads_texts"),
        Fit("model.standardize_features", (False,), "tunes what it reads", "reads_texts"),
    )
    embeds_pairs = True
    descends = True
    model, fitter = "pipeline.models.towers.TwoTowers", "pipeline.training.towers.fit"
    kind: Literal["contrastive"]
    learn_scale: bool = True
    """Whether the scale of the similarities, and a bias that the model has, are learnt; else they stay as they were."""
    lr_scale: float = Field(1.0, gt=0)
    """Their learning rate, as a multiple of `optim.lr`."""

    @property
    def learns_scale(self) -> bool:
        return self.learn_scale


class ZeroShotHead(TextHead):
    """No training: the model as it was released; a class is its text."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("model.encoder.learns", (False,), "tunes nothing", "reads_texts"),
        Fit("model.text.learns", (False,), "tunes nothing", "reads_texts"),
        Fit("model.standardize_features", (False,), "tunes nothing", "reads_texts"),
    )
    chooses = False
    model, fitter = "pipeline.models.towers.TwoTowers", "pipeline.training.few_shot.fit_zero_shot"
    kind: Literal["zero_shot"]


class LiftHead(TextHead):
    """A classifier that starts at the texts of the classes, over a frozen or lightly tuned image tower (LIFT, arXiv 2309.10019):
    the cosine with each class' weights. A class without training images keeps its text."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("model.text.learns", (False,), "starts from the texts as they are", "reads_texts"),
        Fit("model.standardize_features", (False,), "compares images with texts as they are", "reads_texts"),
        Fit("loss.learns_auxiliary", (False,), "learns no labels beside the class", "reads_texts", hint="loss.auxiliary to 0"),
        Fit("risk.kind", ("mean",), "has no use for risk.kind {risk.kind}", "reads_texts"),
    )
    descends = True
    model, fitter = "pipeline.models.towers.TextClassifier", "pipeline.training.text_classifier.fit"
    kind: Literal["lift"]
    scale: float | None = Field(25.0, gt=0)
    """What cosines are multiplied by for logits; null: what the released model does (100 of most)."""
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of the classes' weights, as a multiple of `optim.lr`."""

    def n_parameters(self, width: int, n_targets: int) -> int:
        return width * n_targets


class FewShotHead(TextHead):
    """A head that is fitted to frozen embeddings at once, and needs no validation."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("model.text.learns", (False,), "is fitted to frozen embeddings", "reads_texts"),
        Fit("model.standardize_features", (False,), "scales embeddings itself", "reads_texts"),
    )
    chooses = False
    model, fitter = "pipeline.models.towers.FewShot", "pipeline.training.few_shot.fit"
    recipe: ClassVar[str]
    """The function of `models/prototypes.py` that makes prototypes of classes."""

    def prototypes(self, images: Any, labels: Any, texts: Any, scale: float) -> Any:
        """`models.prototypes.Prototypes`, from embeddings [N, E] and labels [N] of training images, those of the classes' texts
        [C, E], and what the model multiplies cosines by."""
        return implementation(f"pipeline.models.prototypes.{self.recipe}")(images, labels, texts)


class SimpleShotHead(FewShotHead):
    """The nearest class mean, of embeddings less their mean and divided by their length (SimpleShot, arXiv 1911.04623)."""

    recipe = "simple_shot"
    kind: Literal["simple_shot"]


class LpPlusPlusHead(FewShotHead):
    """A linear probe that blends prototypes with the texts, without anything to tune (LP++, arXiv 2404.02285)."""

    recipe = "lp_plus_plus"
    kind: Literal["lp_plus_plus"]


class TextLogisticHead(FewShotHead):
    """Logistic regression that starts at the texts and is held by them (arXiv 1802.01483)."""

    kind: Literal["text_logistic"]
    penalty: float = Field(1.0, gt=0)
    """On the squared distance from the texts."""

    def prototypes(self, images: Any, labels: Any, texts: Any, scale: float) -> Any:
        return implementation("pipeline.models.prototypes.text_logistic")(images, labels, texts, scale, self.penalty)


class ClapHead(FewShotHead):
    """Prototypes that start at the texts; each is held by them the more the better its text alone tells its shots (CLAP, arXiv
    2312.12730)."""

    kind: Literal["clap"]

    def prototypes(self, images: Any, labels: Any, texts: Any, scale: float) -> Any:
        return implementation("pipeline.models.prototypes.clap")(images, labels, texts, scale)
