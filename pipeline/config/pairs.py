"""The kinds of the block `loss` that compare images with texts: what they cost, what they should be like, how much each counts.

They are of heads that embed both (`Head.embeds_pairs`). Formulas: `models/pairs/`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.fits import Fit
from pipeline.config.kinds import Kind, kind_of
from pipeline.config.loss import Loss
from pipeline.config.section import Section, Seed, implementation


class Weights(Section):
    """How much a pair counts; as by default all alike."""

    classes: Literal["none", "inverse_frequency", "class_balanced"] = "none"
    """By training counts n of classes: n^−γ, or (1 − β) / (1 − βⁿ) (arXiv 1901.05555)."""
    gamma: float = Field(0.5, gt=0)
    """The exponent γ of inverse_frequency."""
    beta: float = Field(0.9999, gt=0, lt=1)
    """β of class_balanced."""
    mean_over: Literal["classes", "samples"] = "classes"
    """What the weights of classes have the mean 1 over."""
    pairs: Literal["product", "count", "doubled", "probability"] = "product"
    """Of two classes: the product of their weights; the weight of n₁·n₂ (of inverse_frequency the same), or of that doubled where
    they differ; of how often a batch pairs them."""
    focal: float = Field(0.0, ge=0)
    """Focusing exponent γ: what is told apart already counts less (arXiv 1708.02002); 0: all alike."""
    focal_form: Literal["likelihood", "distance"] = "likelihood"
    """p_t of soft targets t: 1 − p + t(2p − 1), or 1 − |t − p|."""
    balance: bool = False
    """Give what is alike and what is not equal sums of weights in each batch."""
    join: Literal["product", "arithmetic", "geometric", "harmonic"] = "product"
    """How one weight is made of those of classes, focus and balance that are asked for: their product, or a mean of them."""

    @model_validator(mode="after")
    def _each_key_has_a_use(self) -> Weights:
        asked = [self.classes != "none", self.focal > 0, self.balance]
        uses = {
            "gamma": (self.classes == "inverse_frequency", "classes inverse_frequency"),
            "beta": (self.classes == "class_balanced", "classes class_balanced"),
            "mean_over": (asked[0], "classes inverse_frequency or class_balanced"),
            "pairs": (asked[0], "classes inverse_frequency or class_balanced"),
            "focal_form": (asked[1], "focal above 0"),
            "join": (sum(asked) > 1, "several of classes, focal and balance"),
        }
        for key, (is_used, needs) in uses.items():
            if not is_used and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is of {needs}: set that, or leave {key} out")
        return self


class Images(Section):
    """The supervised contrastive loss between images (Khosla et al. 2020, arXiv 2004.11362), beside that of pairs."""

    weight: float = Field(0.0, ge=0)
    """What it is multiplied by before it is added; 0: there is none."""
    temperature: float = Field(0.1, gt=0)
    """What cosines are divided by."""


class Compared(Section):
    """What a first and a second loss are both told: what is alike, how it is compared, how much each pair counts."""

    term: ClassVar[str]
    """The class (`models/pairs/pair_loss.Term`) that computes it."""
    targets: Literal["pairwise", "multipositive", "hierarchical", "phylogenetic"] = "pairwise"
    """What is alike: an image and its own text; or all of its class; by the ranks that classes share; by their tree."""
    shuffle: Seed | None = None
    """Control: the species of the tree permuted by this seed, so that it says nothing of looks; null: as they are."""
    similarity: Literal["cosine", "geodesic", "geodesic_acos"] = "cosine"
    """What logits are of: the cosine of two embeddings, or 1 − 2θ/π of the angle θ between them, by atan2 or by acos of a clamped
    cosine."""
    clamp_scale: bool = False
    """Keep the scale of the logits, exp(scale), below 100."""
    weights: Weights = Weights()

    @model_validator(mode="after")
    def _shuffles_a_tree(self) -> Compared:
        if self.shuffle is not None and self.targets != "phylogenetic":
            raise ValueError(f"shuffle is of targets phylogenetic, and targets is {self.targets}")
        return self

    def _refuse(self, why: str, *keys: str) -> None:
        """Raises ValueError where one of these keys of `weights` is not as by default."""
        for key in keys:
            if getattr(self.weights, key) != Weights.model_fields[key].default:
                raise ValueError(f"weights.{key} {why}: leave it out, or set another kind of loss")


class InfoNce(Compared):
    """Cross-entropy over the texts of a batch for each image and over the images for each text: CLIP's, with soft targets."""

    term = "pipeline.models.pairs.pair_loss.InfoNce"
    logit_adjustment: float = Field(0.0, ge=0)
    """τ: add τ·log(share of the training images) of each candidate's class to its logit (arXiv 2007.07314); 0: not. That is of
    all classes as candidates. Those of a batch are drawn, and of shuffled images in proportion to these shares already, which
    then count twice: with `train.batches` classes, or balanced by a low power, candidates are of all classes alike."""

    @model_validator(mode="after")
    def _weighs_rows(self) -> InfoNce:
        self._refuse("is of losses of each pair, and infonce has one of each row", "pairs", "balance", "focal_form")
        return self


class Bce(Compared):
    """Binary cross-entropy of each pair of a batch: SigLIP's, with soft targets."""

    term = "pipeline.models.pairs.pair_loss.Bce"


class Regression(Compared):
    """A loss of the logits themselves, which should be 2T − 1."""

    @model_validator(mode="after")
    def _has_no_probability(self) -> Regression:
        self._refuse("is of probabilities, and a loss of the logits has none", "focal")
        return self


class Squared(Regression):
    """Squared error of each pair's logit from 2T − 1."""

    term = "pipeline.models.pairs.pair_loss.Squared"


class Huber(Regression):
    """Huber's loss of each pair's logit from 2T − 1: squared near it, absolute beyond β."""

    term = "pipeline.models.pairs.pair_loss.Huber"
    beta: float = Field(0.1, gt=0)
    """Where it turns from squared to absolute."""


# ---------------------------------------------------------------- a second one
class Second(Kind):
    """A second loss of the same pairs, with a scale and a bias of its own."""

    weight: float = Field(gt=0, lt=1)
    """Its share m: (1 − m)·first + m·second."""


class SecondInfoNce(InfoNce, Second):
    """`infonce` beside another loss."""

    kind: Literal["infonce"]


class SecondBce(Bce, Second):
    """`pair_bce` beside another loss."""

    kind: Literal["pair_bce"]


class SecondSquared(Squared, Second):
    """`pair_mse` beside another loss."""

    kind: Literal["pair_mse"]


class SecondHuber(Huber, Second):
    """`pair_huber` beside another loss."""

    kind: Literal["pair_huber"]


# ---------------------------------------------------------------- the first one
class PairLoss(Loss, Compared):
    """What pairs of an image and a text cost, those of a batch against each other."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("risk.kind", ("mean",), "is of a whole batch, and risk.kind {risk.kind} weighs images by their domain"),
        Fit("augment.mixup_alpha", (0.0,), "compares classes, which augment.mixup_alpha mixes"),
    )
    of = "pairs"
    learns_variance = False
    second: Annotated[Second | None, *kind_of(Second)] = None
    """A second loss, blended with this one; null: there is none."""
    normalize_by_value: bool = False
    """Divide each loss by its own value, which takes no part in the gradient: shares are of relative changes."""
    images: Images = Images()

    @model_validator(mode="after")
    def _normalizes_several(self) -> PairLoss:
        if self.normalize_by_value and self.second is None and not self.images.weight:
            raise ValueError("normalize_by_value is of several losses: set second or images.weight, or leave it out")
        return self

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.pairs.pair_loss.PairLoss")(self)

    @property
    def compared(self) -> list[Any]:
        """The blocks of the first loss and of the second, if there is one."""
        return [self, *([self.second] if self.second else [])]

    @property
    def reads_ranks(self) -> bool:
        return any(each.targets == "hierarchical" for each in self.compared)


class InfoNceLoss(InfoNce, PairLoss):
    """Cross-entropy over the texts of a batch for each image and over the images for each text: CLIP's, with soft targets."""

    kind: Literal["infonce"]


class BceLoss(Bce, PairLoss):
    """Binary cross-entropy of each pair of a batch: SigLIP's, with soft targets."""

    kind: Literal["pair_bce"]


class PairSquaredError(Squared, PairLoss):
    """Squared error of each pair's logit from 2T − 1."""

    kind: Literal["pair_mse"]


class PairHuberLoss(Huber, PairLoss):
    """Huber's loss of each pair's logit from 2T − 1: squared near it, absolute beyond β."""

    kind: Literal["pair_huber"]
