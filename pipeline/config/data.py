"""The block `data`: images, their targets and their splits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.decoding import Decoding
from pipeline.config.fits import GIVEN, Fit
from pipeline.config.kinds import Kind, kind_of
from pipeline.config.section import LATER, Formerly, Section, Seed

RESULT_KEYS = {
    "summary", "split", "selected_on", "n_images", "n_events", "config_hash", "feature_key", "data_signature",
    "evaluation", "schema_version", "classes", "challenge", "by_species", "by_domain",
}  # fmt: skip


FORMER_MISSING = ("NA", "N/A", "#N/A", "nan", "NULL", "None", "NaT", "<NA>", "-", "?")
MISSING = (
    *FORMER_MISSING, "#NA", "#N/A N/A", "-nan", "1.#QNAN", "-1.#QNAN", "1.#IND", "-1.#IND", "\\N", "<null>", "(null)", "[null]",
    "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#NAME?", "#NULL!", "n.a.", "--", "---", "–", "—", ".",
)  # fmt: skip
"""What R, Excel, pandas, SAS, databases and people write for nothing."""


class Columns(Section):
    """Which column of the data holds what."""

    fits = (Fit("data.label", GIVEN, "are labels beside classes", "auxiliary"),)
    image: str
    """Column with the image (bytes, an `Image` feature, or a path relative to the data's folder)."""
    id: str | None = None
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


class Split(Kind):
    """Which rows train, validate and test."""

    by: ClassVar[str | None] = None
    """The column, by its key in `data.columns`, of what is left out as a whole; None: each group by itself."""
    is_stratified: ClassVar[bool] = False
    """Whether each class is dealt out evenly."""

    @property
    def names(self) -> dict[str, str]:
        """What the source calls each split; empty where rows of all its splits are dealt out here."""
        return {}


class SourceSplit(Split):
    """The splits that the data set itself names."""

    kind: Literal["source"] = "source"
    train: str = "train"
    """Name of the training split in the source."""
    validation: str = "validation"
    """Name of the validation split in the source."""
    test: str = "test"
    """Name of the test split in the source; it may be absent."""

    @property
    def names(self) -> dict[str, str]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


class Folded(Split):
    """Cross-validation: fold `fold` is tested, the next one validates, the others train."""

    n: Annotated[int, Field(ge=3)] = 5
    """Number of folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is tested."""
    seed: Seed = 0
    """Seed of the assignment to folds."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Folded:
        if self.fold >= self.n:
            raise ValueError(f"fold {self.fold} does not exist: with n = {self.n} folds count from 0 to {self.n - 1}")
        return self

    @property
    def share_held_out(self) -> float:
        """Share of what the training parts consist of that tests too."""
        return 0.0

    def part_of(self, value: str) -> str:
        """The part that a value of the column `by` belongs to."""
        return value


class FoldSplit(Folded):
    """Cross-validation over groups."""

    is_stratified = True
    kind: Literal["folds"]


class SiteSplit(Folded):
    """Cross-validation over sites, so that none is on two sides: figures are of new ones."""

    by = "site"
    fits = (Fit("data.columns.site", GIVEN, "leaves sites out"),)
    kind: Literal["sites"]


class YearSplit(Folded):
    """Cross-validation over years, so that none is on two sides: figures are of new ones."""

    by = "date"
    fits = (Fit("data.columns.date", GIVEN, "leaves years out"),)
    kind: Literal["years"]

    def part_of(self, value: str) -> str:
        return value[:4]


class DomainSplit(Folded):
    """Cross-validation over domains: what is tested and what validates are domains never trained on, and some site-dates
    of those that are."""

    by = "domain"
    fits = (Fit("data.columns.domain", GIVEN, "leaves domains out"),)
    kind: Literal["domains"]
    held_out: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the training domains' site-dates that test too; as many validate. They give the in-domain figures."""

    @property
    def share_held_out(self) -> float:
        return self.held_out


class Data(Decoding):
    """The images, how they are decoded, their targets and their splits."""

    fits = (
        *(Fit(f"data.columns.{name}", GIVEN, "reads images of their own", name) for name in ("colour_card", "scale_bar")),
        Fit("data.label", GIVEN, "is of classes", "positive"),
    )
    source: str
    """Hub data set (`owner/name`), a `save_to_disk` folder, a Parquet file or a folder of them, or a CSV file."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    images: str | None = None
    """Folder that image paths of a CSV are relative to, a relative one beside the CSV or else in the current folder; null: the
    CSV's own folder."""
    download: Download | None = None
    """Download the images of a CSV that are not there, or not whole; `{}` for the usual columns; null: all are there."""
    columns: Columns
    targets: tuple[str, ...] = ()
    """Numeric columns to predict; all rows of one group share them."""
    label: str | None = None
    """Column with the class to predict, instead of numbers; all rows of one group share it."""
    positive: str | None = None
    """Of two classes the one that scores are of (`hybrid`); null: the first one by name."""
    missing: Annotated[tuple[str, ...], LATER, Formerly(FORMER_MISSING)] = MISSING
    """What stands in a cell, in letters of any case, for nothing: a label, a number or an image that lacks is refused, a group
    that lacks is one of its own, a domain, species, site or date is unknown. `[]`: empty cells alone."""
    on_duplicate: Annotated[Literal["warn", "error", "drop"], LATER] = "warn"
    """The same image (to the byte) in several splits, or with different truths: say so in the results; stop; or go on without
    those that contradict one another, and without copies in train, then in validation, of what is in a later split."""
    split: Annotated[Split, *kind_of(Split)] = SourceSplit()
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

    @property
    def decoding(self) -> Decoding:
        """How images are decoded, alone."""
        return Decoding(**{name: getattr(self, name) for name in Decoding.model_fields})

    @property
    def truth(self) -> Literal["numbers", "classes"]:
        """What is to be predicted."""
        return "numbers" if self.label is None else "classes"

    @property
    def truth_in_words(self) -> str:
        return "numbers (data.targets)" if self.label is None else "classes (data.label)"

    @model_validator(mode="after")
    def _names_what_is_predicted(self) -> Data:
        if self.label is not None and self.targets:
            raise ValueError("label and targets exclude one another: set targets to [] to predict the label")
        if self.label is not None and "=" in self.label:
            raise ValueError("label: a column whose name has no = in it, which stands between it and a class in results")
        if len({self.label, *self.columns.auxiliary}) <= len(self.columns.auxiliary):
            raise ValueError("columns.auxiliary names labels beside the label: each column once, and not the label's")
        if (not self.targets and self.label is None) or len(set(self.targets)) != len(self.targets):
            raise ValueError("name what is to be predicted: targets, at least one and none of them twice, or a label")
        if taken := RESULT_KEYS & set(self.targets):
            raise ValueError(f"a target cannot be called {', '.join(sorted(taken))}: results.json has a key of that name")
        return self
