"""Experiment configuration: the pydantic models of a YAML, one section per concern.

What a trained model depends on (data, backbone, features, model, training, seed) is science and is hashed; `resources`,
`paths` and `device` say where and with what a job runs and are not, nor is `evaluate`: the same model can be evaluated
again in another way. Reading YAML, overrides and grids is in `experiments/`.
This module loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.amounts import format_memory, format_time, parse_memory, parse_time

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
# A task is a file; listing them imports none.
TASKS = sorted(p.stem for p in (Path(__file__).parents[1] / "tasks").glob("[a-z]*.py"))
RESULT_KEYS = {
    "summary", "split", "selected_on", "n_images", "n_events", "config_hash", "feature_key", "data_signature",
    "evaluation", "schema_version", "classes", "challenge", "by_species", "by_domain",
}  # fmt: skip
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """A strict, immutable block of the configuration: an unknown key or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


# ---------------------------------------------------------------- data
class Columns(Section):
    """Which column of the data holds what."""

    image: str = "file_path"
    """Column with the image (bytes, an `Image` feature, or a path relative to the data's folder)."""
    id: str | None = "public_id"
    """Column that names a row to people, in predictions and errors; null or absent: the image's path, else `split:row`."""
    group: str | None = None
    """Column that groups images of one sampling group; null: each image is a group of its own."""
    domain: str | None = None
    """Column with the domain (NEON eco-domain); null: every image has the unknown domain."""
    species: str | None = None
    """Column with the scientific name; null: unknown."""
    site: str | None = None
    """Column with the site; null: unknown."""
    date: str | None = None
    """Column with the date of collection, with or without a time; null: unknown."""
    colour_card: str | None = None
    """Column with the image of the colour card that was photographed with each image; read if data.colour_card is set."""
    scale_bar: str | None = None
    """Column with the image of the scale bar that was photographed with each image; read if data.scale_bar is set."""
    auxiliary: tuple[str, ...] = ()
    """Columns with names that are learnt beside data.label (a subspecies, a hybrid's two parents): one label, shared equally
    by the names that a row has; a row with none says nothing. See loss.auxiliary."""


class Download(Section):
    """Which columns of a CSV say where its images are fetched from (`carabid fetch`), into the folder data.images."""

    url: str = "file_url"
    """Column with an image's address, http or https."""
    md5: str | None = "md5"
    """Column with the md5 of its content; null: there is none, and what arrives is not checked."""


class SourceSplit(Section):
    """The splits that the data set itself names."""

    kind: Literal["source"] = "source"
    train: str = "train"
    """Name of the training split in the source."""
    validation: str = "validation"
    """Name of the validation split in the source."""
    test: str = "test"
    """Name of the test split in the source; it may be absent."""


class _Folds(Section):
    """Cross-validation: fold `fold` is tested, the next one validates, the others train."""

    n: Annotated[int, Field(ge=3)] = 5
    """Number of folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is tested."""
    seed: Seed = 0
    """Seed of the assignment to folds."""

    @model_validator(mode="after")
    def _fold_exists(self) -> _Folds:
        if self.fold >= self.n:
            raise ValueError(f"fold {self.fold} does not exist: with n = {self.n} folds count from 0 to {self.n - 1}")
        return self


class FoldSplit(_Folds):
    """Cross-validation over groups."""

    kind: Literal["folds"]


class GroupSplit(_Folds):
    """Cross-validation over sites or years, so that none is on two sides: figures are of new ones."""

    kind: Literal["sites", "years"]


class DomainSplit(_Folds):
    """Cross-validation over domains: what is tested and what validates are domains never trained on, and some site-dates
    of those that are."""

    kind: Literal["domains"]
    held_out: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the training domains' site-dates that test too; as many validate. They give the in-domain figures."""


class Data(Section):
    """The images, their targets and their splits."""

    source: str = "imageomics/sentinel-beetles"
    """Hub data set (`owner/name`), a `save_to_disk` folder, a Parquet file or a folder of them, or a CSV file."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    images: str | None = None
    """Folder that image paths of a CSV are relative to, a relative one beside the CSV or else in the current folder; null: the
    CSV's own folder."""
    download: Download | None = None
    """Download the images of a CSV that are not there, or not whole; `{}` for the usual columns; null: all are there."""
    columns: Columns = Columns()
    targets: tuple[str, ...] = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
    """Numeric columns to predict; all rows of one group share them. None where a label is."""
    label: str | None = None
    """Column with the class to predict, instead of numbers; all rows of one group share it."""
    positive: str | None = None
    """Of two classes the one that scores are of (`hybrid`); null: the first one by name."""
    split: Annotated[SourceSplit | FoldSplit | GroupSplit | DomainSplit, Field(discriminator="kind")] = SourceSplit()
    on_bad_image: Literal["error", "skip"] = "error"
    """An unreadable image: stop and name it, or go on without it and record it in the results."""
    colour_card: bool = False
    """Correct each image's colours by its colour card (columns.colour_card), so that all are as under one light."""
    scale_bar: bool = False
    """Bring each image to one scale by its scale bar (columns.scale_bar), on a canvas of one size: body size shows."""
    canvas: float = Field(5.0, gt=0)
    """Side of that canvas in periods of the scale bar, a dark and a light stretch each; what does not fit is cut off."""
    permute_targets: bool = False
    """Control: deal the groups' targets out to other groups of the same split, so that nothing is left to learn."""

    @model_validator(mode="after")
    def _split_has_its_column(self) -> Data:
        column = {"domains": "domain", "sites": "site", "years": "date"}.get(self.split.kind)
        if column and getattr(self.columns, column) is None:
            raise ValueError(f"split.kind {self.split.kind} needs columns.{column}: name the column that holds it")
        return self

    @model_validator(mode="after")
    def _corrections_have_their_columns(self) -> Data:
        for name in ("colour_card", "scale_bar"):
            if getattr(self, name) and getattr(self.columns, name) is None:
                raise ValueError(f"{name} true needs columns.{name}: name the column that holds these images")
        return self

    @model_validator(mode="before")
    @classmethod
    def _a_label_stands_instead_of_targets(cls, values: Any) -> Any:
        labelled = isinstance(values, dict) and values.get("label") is not None
        return {"targets": (), **values} if labelled else values

    @model_validator(mode="after")
    def _a_label_or_numbers(self) -> Data:
        if self.label is not None and self.targets:
            raise ValueError("label and targets exclude one another: set targets to [] to predict the label")
        if self.label is not None and "=" in self.label:
            raise ValueError(
                "label: a column whose name has no = in it, which stands between it and a class in results"
            )
        if len({self.label, *self.columns.auxiliary}) <= len(self.columns.auxiliary):
            raise ValueError("columns.auxiliary names labels beside the label: each column once, and not the label's")
        if self.label is None and (self.positive is not None or self.columns.auxiliary):
            raise ValueError("positive and columns.auxiliary are of classes: name the column of these as label")
        return self

    @model_validator(mode="after")
    def _targets_named_once(self) -> Data:
        if (not self.targets and self.label is None) or len(set(self.targets)) != len(self.targets):
            raise ValueError("targets must name at least one column, and none of them twice")
        if taken := RESULT_KEYS & set(self.targets):
            raise ValueError(
                f"a target cannot be called {', '.join(sorted(taken))}: results.json has a key of that name"
            )
        return self


# ---------------------------------------------------------------- backbones
class OpenClip(Section):
    """Any image tower of open_clip."""

    kind: Literal["open_clip"] = "open_clip"
    name: str = "hf-hub:imageomics/bioclip-2"
    """`hf-hub:owner/name`, `local-dir:/a/folder`, or an architecture name such as `ViT-B-32`."""
    pretrained: str | None = None
    """Pretrained tag or checkpoint file of an architecture name; null: random weights drawn from `seed`."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""


class Dinov2(Section):
    """DINOv2 through transformers."""

    kind: Literal["dinov2"]
    name: str = "facebook/dinov2-base"
    """Hub name or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the Hub."""
    pooling: Literal["cls", "cls_mean"] = "cls"
    """The embedding: the class token; or the class token and, after it, the mean of the patch tokens."""


class Timm(Section):
    """Any image network of timm: its pooled features, without its classifier."""

    kind: Literal["timm"]
    name: str = "resnet18"
    """An architecture (with or without a tag: `resnet18.a1_in1k`), `hf-hub:owner/name`, or `local-dir:/a/folder`."""
    pretrained: bool = False
    """Whether an architecture's published weights are loaded; false: random weights drawn from `seed`."""
    image_size: Positive | None = None
    """Side in pixels of the images that it reads; null: what it was made for."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""


class Pixels(Section):
    """A plain baseline instead of a network: the image shrunk to size × size RGB values (size 1: its mean colour)."""

    kind: Literal["pixels"]
    size: Positive = 8
    """Side of the thumbnail in pixels."""


Part = Annotated[OpenClip | Dinov2 | Timm | Pixels, Field(discriminator="kind")]


class Concat(Section):
    """Several backbones as one: their embeddings, each scaled to length 1, one after the other."""

    kind: Literal["concat"]
    parts: tuple[Part, ...] = (OpenClip(), Dinov2(kind="dinov2"))
    """The backbones, each a block with its `kind`."""

    @field_validator("parts")
    @classmethod
    def _are_several(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(parts) < 2:
            raise ValueError("a concatenation is of two backbones or more; one alone is written as the backbone itself")
        return parts


Backbone = Annotated[OpenClip | Dinov2 | Timm | Pixels | Concat, Field(discriminator="kind")]


def backbone_parts(backbone: Backbone) -> tuple[Part, ...]:
    """The backbones that one is made of: itself, or the parts of a concatenation."""
    return backbone.parts if isinstance(backbone, Concat) else (backbone,)


def backbone_name(backbone: Backbone) -> str:
    """What people call a backbone: `facebook/dinov2-base`, `pixels`, `resnet18 + pixels`."""
    return " + ".join("pixels" if part.kind == "pixels" else part.name for part in backbone_parts(backbone))


# ---------------------------------------------------------------- features
class Features(Section):
    """The feature store's format, part of its key."""

    dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format on disk."""
    shard_size: Positive = 1024
    """Images a shard."""


# ---------------------------------------------------------------- model
class Frozen(Section):
    """The backbone's pooled embedding as it is."""

    kind: Literal["frozen"] = "frozen"


class FineTuned(Section):
    """The last blocks and the final layer norm are trained, on cached tokens of the frozen trunk."""

    kind: Literal["finetuned"]
    blocks: Positive = 2
    """How many of the last blocks are trained: the cut is at n_blocks − blocks."""
    lr_scale: float = Field(0.01, gt=0)
    """Learning rate of blocks and layer norm, as a multiple of `optim.lr`."""


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]


class Lora(Section):
    """Low-rank adapters on the last blocks through PEFT (LoRA, arXiv 2106.09685; DoRA, 2402.09353; rsLoRA, 2312.03732)."""

    kind: Literal["lora"]
    blocks: Positive = 6
    """How many of the last blocks carry adapters."""
    r: Positive = 256
    """Rank."""
    alpha: float = Field(256, gt=0)
    """Scale of the update: alpha / r, or alpha / √r with rsLoRA."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""
    rslora: bool = True
    """Scale by 1/√r instead of 1/r."""
    dora: bool = True
    """Train magnitude and direction apart."""
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "c_fc",
        "c_proj",
    )
    """Projections that carry adapters."""
    depth_gain: float = Field(0.5, ge=0)
    """Block i of N learns at lr·(1 + depth_gain·i/N)."""
    ln_scale: float = Field(0.5, gt=0)
    """Learning rate of the final layer norm, as a multiple of `optim.lr`."""


class PatchConvs(Section):
    """Two convolutions over the grid of frozen patch tokens, the second one as wide as what the first leaves."""

    kind: Literal["patch_convs"]
    kernel: Positive = 5
    """Side of the first convolution's kernel; it keeps the width."""
    channels: Positive = 1024
    """Output channels of the second convolution."""


class EndToEnd(Section):
    """Nothing is frozen: the whole backbone learns from images, which are cached as it reads them."""

    kind: Literal["end_to_end"]
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of the backbone, as a multiple of `optim.lr`."""


Encoder = Annotated[Frozen | FineTuned | Lora | PatchConvs | EndToEnd, Field(discriminator="kind")]


class MlpHead(Section):
    """A perceptron with GELU between its layers, trained by gradient descent."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Positive, ...] = (512, 128, 32)
    """Widths of the hidden layers."""
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of head and domain embedding, as a multiple of `optim.lr`."""


class RidgeHead(Section):
    """Ridge regression on standardised embeddings, solved in closed form; the penalty is chosen on validation."""

    kind: Literal["ridge"]
    alphas: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (
        1e-2,
        1e-1,
        1.0,
        1e1,
        1e2,
        1e3,
        1e4,
    )
    """Penalties to choose from by `select.metric`."""


class ClimatologyHead(Section):
    """No image: mean and spread of the training groups of a site and day of the year; else of the domain; else of all."""

    kind: Literal["climatology"]
    window: Annotated[int, Field(ge=0, le=183)] = 30
    """Days before and after that day of the year, in any year, that count as that day."""
    min_groups: Annotated[int, Field(ge=2)] = 5
    """With fewer training groups than these the domain is asked, then all."""


class BoostingHead(Section):
    """No image: gradient-boosted trees (LightGBM) on domain, species, site and day of the year."""

    kind: Literal["boosting"]
    rounds: Positive = 500
    """At most so many trees for each target."""
    patience: Positive = 30
    """Stop after so many trees without a better squared error on validation."""
    lr: float = Field(0.05, gt=0)
    """Shrinkage of each tree."""
    leaves: Annotated[int, Field(ge=2)] = 15
    """Leaves of a tree."""
    min_leaf: Positive = 20
    """Images in a leaf, at least."""


# Classifiers of scikit-learn on the frozen embedding, solved at once; all but trees on standardised features.
class SvcHead(Section):
    """Support vector classifier; its probabilities by a logistic line through out-of-fold decisions (Platt)."""

    kind: Literal["svc"]
    C: float = Field(1.0, gt=0)
    """Inverse of the penalty."""
    kernel: Literal["rbf", "linear"] = "rbf"
    gamma: Literal["scale"] | Annotated[float, Field(gt=0)] = "scale"
    """Of the RBF kernel exp(−γ·distance²); scale: 1 / (features · their variance)."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""

    @model_validator(mode="after")
    def _gamma_has_its_kernel(self) -> SvcHead:
        if self.kernel == "linear" and self.gamma != "scale":
            raise ValueError("gamma is of the rbf kernel, and kernel is linear")
        return self


class SgdHead(Section):
    """Linear classifier learnt by stochastic gradient descent on log loss; its probabilities as those of `svc`."""

    kind: Literal["sgd"]
    alpha: float = Field(1e-3, gt=0)
    """L2 penalty."""
    eta0: float = Field(1e-3, gt=0)
    """First learning rate: adaptive, a fifth of it each time that the loss stops falling."""
    max_iter: Positive = 1000
    """At most so many passes over the training images."""
    n_iter_no_change: Positive = 100
    """Passes without a lower loss after which the rate falls."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""


class KnnHead(Section):
    """Vote of the nearest training images."""

    kind: Literal["knn"]
    k: Positive = 5
    """How many vote."""
    weights: Literal["uniform", "distance"] = "uniform"
    """Each vote alike, or by 1 / distance."""


class GaussianProcessHead(Section):
    """Gaussian process classifier by Laplace's approximation; its kernel, amplitude² · RBF, is fitted to the training images.

    It takes the cube of their number: for more than a few thousand it is refused (`training/classifiers.py`).
    """

    kind: Literal["gaussian_process"]
    length_scale: Literal["scale"] | Annotated[float, Field(gt=0)] = "scale"
    """Length scale of the RBF kernel that the fit starts from; scale: √(number of features / 2), as `svc` has it."""


class LogisticHead(Section):
    """Logistic regression (several classes: multinomial) with an L2 penalty, chosen by `select.metric`."""

    kind: Literal["logistic"]
    Cs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1)
    """Inverses of the penalty to choose from, in ascending order: each fit starts from the one before."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""

    @field_validator("Cs")
    @classmethod
    def _ascend(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError("Cs must ascend, and none stand twice")
        return values


class LdaHead(Section):
    """Linear discriminant analysis: normal classes of one covariance, by least squares."""

    kind: Literal["lda"]
    shrinkage: Literal["auto"] | Fraction | None = "auto"
    """Of the covariance towards its diagonal: auto (Ledoit–Wolf), a share, or null: none."""


class HistGradientBoostingHead(Section):
    """scikit-learn's gradient-boosted trees on binned features (`boosting` is LightGBM's, on metadata)."""

    kind: Literal["hist_gradient_boosting"]
    lr: float = Field(0.1, gt=0)
    """Shrinkage of each tree."""
    rounds: Positive = 100
    """Number of trees (of each class, if these are more than two)."""
    leaves: Annotated[int, Field(ge=2)] = 31
    """Leaves of a tree, at most."""
    min_leaf: Positive = 20
    """Training images in a leaf, at least."""
    l2: float = Field(0.0, ge=0)
    """Penalty on the leaves' values."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""


class MahalanobisHead(Section):
    """One class: the distance to the nearest parent class' Gaussian, all of one Ledoit–Wolf covariance (arXiv 1807.03888).

    Parent classes are the auxiliary labels of images that are not positive; without these, they are one class.
    """

    kind: Literal["mahalanobis"]


class KnnDistanceHead(Section):
    """One class: the mean distance to the nearest training images that are not positive."""

    kind: Literal["knn_distance"]
    k: Positive = 5
    """How many are the nearest."""


OneClassHead = MahalanobisHead | KnnDistanceHead
"""Learn what is not positive, and call positive what is far from it: they need two classes."""
ClassifierHead = (
    SvcHead | SgdHead | KnnHead | GaussianProcessHead | LogisticHead | LdaHead | HistGradientBoostingHead | OneClassHead
)
CLASSIFIER_KINDS = tuple(get_args(head.model_fields["kind"].annotation)[0] for head in get_args(ClassifierHead))
Head = Annotated[MlpHead | RidgeHead | ClimatologyHead | BoostingHead | ClassifierHead, Field(discriminator="kind")]


class Model(Section):
    """What stands between features and predictions."""

    encoder: Encoder = Frozen()
    normalize: bool = True
    """L2-normalise the embedding before the head."""
    standardize_features: bool = False
    """Scale each dimension of the (normalised) frozen embedding by the training images' mean and sd."""
    domain_embedding: bool = False
    """Add a learned embedding of the domain to the (normalised) image embedding."""
    species_embedding: bool = False
    """Add a learned embedding of the scientific name and one of its genus, by which names never seen are known."""
    head: Head = MlpHead()
    pool: Literal["mean", "precision", "attention"] = "mean"
    """A group's forecast from its images': their mean, weighted by 1 / variance (which a probabilistic loss learns), or by
    an attention that learns from groups (`train.sample: groups`)."""
    standardize_targets: bool = False
    """Learn targets scaled by the training groups' mean and sd; predictions come back in the targets' own units."""

    @model_validator(mode="after")
    def _only_perceptrons_descend(self) -> Model:
        embeddings = self.domain_embedding or self.species_embedding
        if self.head.kind != "mlp" and (self.encoder.kind != "frozen" or embeddings or self.pool != "mean"):
            raise ValueError(
                f"head.kind {self.head.kind} is not trained by gradient descent: it needs encoder.kind frozen, pool mean and "
                "neither domain_embedding nor species_embedding"
            )
        return self

    @model_validator(mode="after")
    def _only_frozen_features_are_standardised(self) -> Model:
        if self.standardize_features and (self.encoder.kind != "frozen" or self.head.kind != "mlp"):
            raise ValueError(
                "standardize_features scales what does not learn, for heads that do not scale it themselves: it needs "
                "encoder.kind frozen and head.kind mlp"
            )
        return self


# ---------------------------------------------------------------- training
class PlainLoss(Section):
    """A loss without options."""

    kind: Literal["mse", "crps", "nll"] = "mse"
    """Squared error of a point; or mean and sigma of a normal distribution by CRPS or by negative log-likelihood."""


class StudentTLoss(Section):
    """Negative log-likelihood of a Student-t distribution: an outlier among images counts for less."""

    kind: Literal["student_t"]
    df: float = Field(5.0, gt=2)
    """Degrees of freedom."""


class QuantileLoss(Section):
    """Pinball loss of several quantiles."""

    kind: Literal["quantiles"]
    levels: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)] = (
        0.05,
        0.25,
        0.5,
        0.75,
        0.95,
    )
    """Levels of the quantiles, in ascending order."""

    @field_validator("levels")
    @classmethod
    def _ascend(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)):
            raise ValueError("levels must ascend, and none stand twice")
        return levels


class CrossEntropy(Section):
    """Of classes: cross-entropy, with what helps where they are of unlike size."""

    kind: Literal["cross_entropy"]
    balanced: bool = False
    """Weight classes by 1 / their share of the training images."""
    focal: float = Field(0.0, ge=0)
    """Focusing exponent γ: what is told apart already counts less (focal loss, arXiv 1708.02002); 0: all alike."""
    auxiliary: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of data.columns.auxiliary, learnt by the same network; 0: not learnt."""


Loss = Annotated[PlainLoss | StudentTLoss | QuantileLoss | CrossEntropy, Field(discriminator="kind")]


class ImageAugment(Section):
    """Augmentations of the images that `model.encoder.kind: end_to_end` learns from, drawn for each image; 0 or false turns
    one off."""

    flip: bool = False
    """Mirror half of the images, left and right."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Turn by up to so many degrees, either way."""
    scale: float = Field(0.0, ge=0)
    """Shrink or enlarge by up to this fraction: a factor between 1 / (1 + scale) and 1 + scale."""
    shift: Fraction = 0.0
    """Shift by up to this fraction of the side, in both directions."""
    brightness: float = Field(0.0, ge=0)
    """Add up to so much, or take it away, in the units of the network's input (about its standard deviations)."""
    contrast: Fraction = 0.0
    """Stretch or flatten by up to this fraction around the image's mean."""
    erase: Fraction = 0.0
    """Probability that a random rectangle becomes 0, the colour that the network takes for the mean."""

    def is_on(self) -> bool:
        """Whether anything is on."""
        return any(self.model_dump().values())


class Augment(Section):
    """Augmentations of what the encoder reads, applied in this order; 0 turns one off."""

    image_dropout: BelowOne = 0.0
    """Probability that an image is left out of its batch, or of its group (at least one stays)."""
    images: ImageAugment = ImageAugment()
    """Of images, where these are what it reads."""
    mixup_alpha: float = Field(0.0, ge=0)
    """λ ~ Beta(α, α) per batch mixes features, targets and domain embeddings (mixup, arXiv 1710.09412)."""
    domain_dropout: Fraction = 0.0
    """Probability that a whole batch's domain becomes unknown."""
    species_dropout: Fraction = 0.0
    """Probability that an image's species becomes unknown; of these, the same share lose their genus too."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the features."""
    warmup: Fraction = 0.0
    """Every strength grows linearly from 0 over this share of the epochs; 0: full strength from the start."""


class Optim(Section):
    """Optimiser."""

    kind: Literal["adam", "adamw"] = "adam"
    lr: float = Field(1e-4, gt=0)
    """Base learning rate; parts of the model scale it (`encoder.lr_scale`, `head.lr_scale`, …)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled with adamw, L2 with adam."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Decay rates of the moments."""
    clip: float | None = Field(None, gt=0)
    """Clip the gradient's global norm to this."""


class Schedule(Section):
    """Learning rate over the epochs: linear warm-up, hold, then constant or cosine."""

    kind: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs of linear warm-up."""
    hold: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Epochs at the full rate before the cosine; auto: min(10, epochs // 10)."""
    floor: Fraction = 0.01
    """The cosine ends at floor·`optim.lr`, the same value for every parameter group."""


class Train(Section):
    """The training loop."""

    epochs: Positive = 500
    batch_size: Positive = 64
    """Images, or with `sample: groups` groups, a step."""
    sample: Literal["images", "groups"] = "images"
    """What is drawn and what the loss is of: images, or groups, each forecast from a set of its images."""
    max_images: Positive = 16
    """With `sample: groups`: how many images of a group are drawn at most, anew in each epoch."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16: forward and backward under autocast, weights and optimiser in fp32. Evaluation is always fp32."""
    patience: Positive | None = None
    """Stop after this many epochs without a better validation metric; null: train to the end."""


class PlainRisk(Section):
    """The mean loss, whatever domains the samples are of."""

    kind: Literal["mean"] = "mean"


class Coral(Section):
    """Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719): means and covariances of the last hidden layer are drawn together."""

    kind: Literal["coral"]
    weight: float = Field(1.0, gt=0)
    """Of the penalty, beside the mean loss."""


class GroupDro(Section):
    """Group DRO (Sagawa et al. 2020, arXiv 1911.08731): the domains with the highest loss weigh most."""

    kind: Literal["group_dro"]
    step: float = Field(0.01, gt=0)
    """Step size of the domains' weights."""


Risk = Annotated[PlainRisk | Coral | GroupDro, Field(discriminator="kind")]


class Select(Section):
    """Which epoch's weights are kept, and by what the best is known."""

    epoch: Literal["best", "last"] = "best"
    """best: by `metric` on validation. last: none is chosen, and validation groups, which calibrate, are not fitted to."""
    metric: Literal["r2", "mae", "roc_auc", "average_precision", "balanced_accuracy", "log_loss"] = "r2"
    """On validation, of numbers: mean over targets of the group R², or of the image MAE. Of classes, of images: area under the
    ROC or the precision-recall curve, balanced accuracy, or mean log loss. Of mae and log_loss lower is better. Default: r2, of
    classes roc_auc."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Of heads that are classifiers: fit on training and validation images together, and choose and score by predictions for
    images left out, in so many folds grouped by group and stratified by class. null: choose and score on validation."""


class Calibrate(Section):
    """How a group's sigma comes about: fitted to the CRPS of validation groups, in-domain and out-of-domain apart."""

    kind: Literal["scale", "emos", "spread"] = "scale"
    """scale: sigma alone, from what images of a group share and what is each one's own; emos: the mean by a line as well;
    spread: not calibrated, the sd over images, as the challenge's sample code does, to compare with."""


class Evaluate(Section):
    """What is evaluated."""

    split: Literal["auto", "validation", "test"] = "auto"
    """auto: test where the data have one, else validation (which selected the epoch: marked as optimistic)."""
    inputs: Literal["features", "images"] = "features"
    """Predict from cached features, or from the images through the whole model."""


# ---------------------------------------------------------------- not science: where and with what
# What stands in a line of an sbatch script: one word of visible characters, so that it cannot begin another line.
SlurmWord = Annotated[str, Field(pattern=r"^[!-~]+$")]
Memory = Annotated[str, AfterValidator(lambda text: format_memory(parse_memory(text)))]
Walltime = Annotated[str, AfterValidator(lambda text: format_time(parse_time(text)))]


class Job(Section):
    """What one stage asks Slurm for; names are Slurm's."""

    partition: SlurmWord | None = None
    account: SlurmWord | None = None
    qos: SlurmWord | None = None
    constraint: SlurmWord | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    gpu_type: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Kind of GPU by Slurm's name for it (`sinfo -o %G` shows them): a100."""
    cpus_per_task: Positive = 4
    mem: Memory = "32G"
    """Memory of the node, as Slurm writes it."""
    time: Walltime = "04:00:00"
    """Walltime: minutes, HH:MM:SS or D-HH:MM:SS."""


class EvaluateJob(Job):
    """What evaluation asks Slurm for."""

    time: Walltime = "01:00:00"


class CollectJob(Job):
    """What collection asks Slurm for."""

    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    cpus_per_task: Positive = 1
    mem: Memory = "4G"
    time: Walltime = "00:30:00"


class Resources(Section):
    """What jobs ask for and how they use it; never makes a result stale."""

    extract: Job = Job()
    train: Job = Job()
    evaluate: EvaluateJob = EvaluateJob()
    collect: CollectJob = CollectJob()
    extract_tasks: Positive = 1
    """Tasks of the extraction's array."""
    extract_batch: Positive = 64
    """Images a forward pass in extraction and in evaluation from images."""
    decode_threads: Positive = 4
    """Threads that decode images."""
    residence: Literal["auto", "device", "host", "mmap"] = "auto"
    """Where features stay while training: on the device, in pinned host memory, or memory-mapped."""
    checkpoint_epochs: Positive | None = None
    """Write a checkpoint each so many epochs."""
    checkpoint_seconds: float = Field(300, ge=0)
    """Write a checkpoint at the end of an epoch when the last one is this old."""
    lease_seconds: float = Field(120, gt=0)
    """A job that extracts renews its lease; one not renewed for this long has died, and another job takes over."""


class Paths(Section):
    """Where things go; null: `$CARABID_ROOT`, else the project's folder."""

    features: str | None = None
    trained: str | None = None
    stage: str | None = None
    """Node-local folder that features are copied to before training reads them; variables such as $TMPDIR are expanded on
    the node. null: they are read where they are."""


class Config(Section):
    """One trial, wholly resolved."""

    task: str = "beetles"
    """The scientific problem: a module of pipeline/tasks."""
    experiment: str = Field(pattern=NAME_PATTERN)
    """Name of the experiment: its folder under trained/. Default: the task and the YAML's file name."""
    seed: Seed = 0
    """Seed of everything random in training."""
    data: Data = Data()
    backbone: Backbone = OpenClip()
    features: Features = Features()
    model: Model = Model()
    loss: Loss = PlainLoss()
    risk: Risk = PlainRisk()
    """How the losses of a batch become the one that is minimised: methods of domain generalisation."""
    augment: Augment = Augment()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    select: Select = Select()
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU if there is one; a job that was given a GPU which torch cannot use stops."""
    resources: Resources = Resources()
    paths: Paths = Paths()

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}; the tasks are: {', '.join(TASKS)}")
        return task

    @model_validator(mode="before")
    @classmethod
    def _classes_are_chosen_by_auc(cls, values: Any) -> Any:
        data, select = (values.get(name, {}) for name in ("data", "select")) if isinstance(values, dict) else ({}, {})
        label = data.get("label") if isinstance(data, dict) else getattr(data, "label", None)
        return values | {"select": {"metric": "roc_auc", **select}} if label and isinstance(select, dict) else values

    @model_validator(mode="after")
    def _classes_and_numbers_have_their_own(self) -> Config:
        classes = self.data.label is not None
        what = "classes (data.label)" if classes else "numbers (data.targets)"
        if classes != (self.loss.kind == "cross_entropy"):
            other = "set loss.kind cross_entropy" if classes else "loss.kind cross_entropy needs data.label"
            raise ValueError(f"loss.kind {self.loss.kind} does not fit {what}: {other}")
        if classes == (self.select.metric in ("r2", "mae")):
            fitting = "roc_auc, average_precision, balanced_accuracy or log_loss" if classes else "r2 or mae"
            raise ValueError(f"select.metric {self.select.metric} does not fit {what}: choose {fitting}")
        if classes != (self.model.head.kind in CLASSIFIER_KINDS) and self.model.head.kind != "mlp":
            fitting = f"mlp, {', '.join(CLASSIFIER_KINDS)}" if classes else "mlp, ridge, climatology or boosting"
            raise ValueError(f"model.head.kind {self.model.head.kind} does not fit {what}: choose {fitting}")
        if classes and self.calibrate.kind != "scale":
            raise ValueError("calibrate is of numbers: a class' probability (data.label) is not calibrated")
        if self.select.folds is not None and self.evaluate.split == "validation":
            raise ValueError(
                "select.folds fits validation images too: evaluate.split validation would be of what was learnt"
            )
        if classes and self.model.standardize_targets:
            raise ValueError("model.standardize_targets scales numbers: classes (data.label) have no scale")
        return self

    @model_validator(mode="after")
    def _auxiliary_labels_have_columns(self) -> Config:
        if self.loss.kind == "cross_entropy" and self.loss.auxiliary and not self.data.columns.auxiliary:
            raise ValueError("loss.auxiliary needs data.columns.auxiliary: name the columns of these labels")
        return self

    @model_validator(mode="after")
    def _only_perceptrons_have_another_loss(self) -> Config:
        head, usual_loss = self.model.head.kind, "mse" if self.data.label is None else "cross_entropy"
        others = {"loss.kind": self.loss.kind, "risk.kind": self.risk.kind, "train.sample": self.train.sample}
        for key, usual in zip(others, (usual_loss, "mean", "images"), strict=True):
            if head != "mlp" and others[key] != usual:
                raise ValueError(f"model.head.kind {head} has no use for {key} {others[key]}: it needs head.kind mlp")
        if head != "mlp" and self.augment != Augment():
            raise ValueError(f"model.head.kind {head} has no use for augment: it needs head.kind mlp")
        if head != "mlp" and self.loss.kind == "cross_entropy" and self.loss != CrossEntropy(kind="cross_entropy"):
            raise ValueError(f"model.head.kind {head} has no use for options of loss: they need head.kind mlp")
        return self

    @model_validator(mode="after")
    def _classifiers_have_what_they_need(self) -> Config:
        if self.select.folds is not None and self.model.head.kind not in CLASSIFIER_KINDS:
            raise ValueError(
                f"select.folds fits again and again, and model.head.kind {self.model.head.kind} is not made for that: it needs "
                f"one of {', '.join(CLASSIFIER_KINDS)}"
            )
        return self

    @model_validator(mode="after")
    def _epochs_are_chosen_where_it_matters(self) -> Config:
        if self.train.patience is not None and self.select.epoch == "last":
            raise ValueError("train.patience waits for a better epoch: it needs select.epoch best")
        if self.model.head.kind != "mlp" and self.select.epoch == "last":
            raise ValueError(f"model.head.kind {self.model.head.kind} has no epochs: it needs select.epoch best")
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> Config:
        if self.model.pool == "attention" and self.train.sample != "groups":
            raise ValueError("model.pool attention learns from sets of images: set train.sample=groups")
        if self.model.pool == "precision" and self.loss.kind in ("mse", "cross_entropy"):
            raise ValueError(
                f"model.pool precision needs a variance of each image, which loss.kind {self.loss.kind} does not learn"
            )
        if self.augment.mixup_alpha and self.train.sample == "groups":
            raise ValueError("augment.mixup_alpha mixes images: it needs train.sample images")
        return self

    @model_validator(mode="after")
    def _risk_has_what_it_acts_on(self) -> Config:
        if self.risk.kind != "mean" and self.augment.mixup_alpha:
            raise ValueError(
                f"risk.kind {self.risk.kind} tells domains apart, and augment.mixup_alpha mixes them: set it to 0"
            )
        model = self.model
        learns = model.encoder.kind != "frozen" or model.domain_embedding or model.species_embedding
        if self.risk.kind == "coral" and not learns and model.head.kind == "mlp" and not model.head.hidden:
            raise ValueError(
                "risk.kind coral acts on the last hidden layer, and there is none: name one in model.head.hidden"
            )
        return self

    @model_validator(mode="after")
    def _names_have_columns(self) -> Config:
        columns = self.data.columns
        if self.model.species_embedding and columns.species is None:
            raise ValueError("model.species_embedding needs data.columns.species: name the column that holds it")
        if self.risk.kind != "mean" and columns.domain is None:
            raise ValueError(f"risk.kind {self.risk.kind} needs data.columns.domain: name the column that holds it")
        return self

    @model_validator(mode="after")
    def _encoder_fits_backbone(self) -> Config:
        backbone, encoder = self.backbone.kind, self.model.encoder.kind
        if backbone == "pixels" and encoder != "frozen":
            raise ValueError(f"backbone.kind pixels has no blocks: model.encoder.kind {encoder} needs a network")
        if backbone == "concat" and encoder != "frozen":
            raise ValueError(
                f"backbone.kind concat is several networks: model.encoder.kind {encoder} needs one; use frozen"
            )
        if backbone == "timm" and encoder not in ("frozen", "end_to_end"):
            raise ValueError(
                f"backbone.kind timm cannot be cut: model.encoder.kind {encoder} needs open_clip or dinov2; use frozen or "
                "end_to_end"
            )
        return self

    @model_validator(mode="after")
    def _images_are_augmented_where_they_are_read(self) -> Config:
        if self.augment.images.is_on() and self.model.encoder.kind != "end_to_end":
            raise ValueError(
                "augment.images changes images, and model.encoder.kind "
                f"{self.model.encoder.kind} reads cached features: it needs end_to_end"
            )
        return self


NOT_SCIENCE = {"experiment", "evaluate", "device", "resources", "paths"}


def science(config: Config) -> dict[str, Any]:
    """The part of a trial's configuration that its result depends on, as plain JSON values."""
    return only_science(config.model_dump(mode="json"))


def only_science(values: dict[str, Any]) -> dict[str, Any]:
    """Those blocks of a configuration that are science; how images come here is not."""
    kept = {key: value for key, value in values.items() if key not in NOT_SCIENCE}
    if isinstance(data := kept.get("data"), dict):
        kept["data"] = {key: value for key, value in data.items() if key != "download"}
    return kept


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes(tree: dict[str, Any], since: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested blocks, as dotted keys, that were others in `since` or not there."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        before = since.get(key)
        if before != value and isinstance(value, dict):
            found |= changes(value, before if isinstance(before, dict) else {}, f"{prefix}{key}.")
        elif before != value:
            found[prefix + key] = value
    return found


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def config_hash(config: Config) -> str:
    """Identity of a trial's science: equal hashes mean equal models on the same data."""
    return digest(science(config))


def image_columns(data: Data) -> tuple[str, ...]:
    """Columns of the images that one input is made of: the image's, then its card's and its bar's where they are used."""
    used = [(True, data.columns.image), (data.colour_card, data.columns.colour_card)]
    used.append((data.scale_bar, data.columns.scale_bar))
    return tuple(column for on, column in used if on and column is not None)


def images_of(data: Data) -> list[Any]:
    """The part of a data section that its images depend on, as plain JSON values: neither targets nor folds."""
    splits = data.split.model_dump(mode="json") if isinstance(data.split, SourceSplit) else "all"
    corrected = [data.colour_card, data.scale_bar, data.canvas] if data.colour_card or data.scale_bar else []
    return [data.source, data.revision, data.images, *image_columns(data), splits, *corrected]


def features_of(config: Config) -> list[Any]:
    """The part of a configuration, beside the data, that its features depend on, as plain JSON values."""
    return [config.backbone.model_dump(mode="json"), config.features.model_dump(mode="json"), *token_kind(config)]


def token_kind(config: Config) -> tuple[Literal["pooled", "patches", "cut", "images"], int]:
    """Which features the encoder reads, and for `cut` how many of the last blocks the tail holds (else 0)."""
    encoder = config.model.encoder
    if encoder.kind in ("finetuned", "lora"):
        return "cut", encoder.blocks
    if encoder.kind == "end_to_end":
        return "images", 0
    return ("patches" if encoder.kind == "patch_convs" else "pooled"), 0
