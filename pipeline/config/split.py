"""Which rows train, validate and test: the family of `data.split`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.fits import GIVEN, OWN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import LATER, Positive, Seed, implementation

NAMED_SPLIT = re.compile(r"([SD])([0-9]{1,2})(?:-([0-9]+))?")
"""`S29-42`, `D10`: the recipe, per cent, and the seed."""


class Split(Kind):
    """Which rows train, validate and test."""

    leaves_out: ClassVar[str | None] = None
    """The column, by its key in `data.columns`, of what is left out as a whole; None: each group by itself."""
    is_stratified: ClassVar[bool] = False
    """Whether each class is dealt out evenly."""
    dealer: ClassVar[str]
    """The function that deals rows out."""
    opens_test: ClassVar[bool] = True
    """Whether `evaluate.split: auto` is the test split, where there is one."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The splits whose rows are trained on."""
        return ("train",)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the data that it reads beside those of `data.columns`."""
        return ()

    @property
    def names(self) -> dict[str, str]:
        """What the source calls each split; empty where rows of all its splits are dealt out here."""
        return {}

    def deal(self, dataset: Any, data: Any, strata: Sequence[str] | None) -> tuple[list[str], list[str]]:
        """The split of each row of a `data.dataset.Dataset`, and warnings; `strata` are the classes of its rows."""
        return implementation(self.dealer)(self, dataset, data, strata)


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

    def deal(self, dataset: Any, data: Any, strata: Sequence[str] | None) -> tuple[list[str], list[str]]:
        return dataset.table["split"].tolist(), []


class Folded(Split):
    """Cross-validation: fold `fold` is tested, the next one validates, the others train."""

    dealer = "pipeline.data.dealing.to_folds"
    n: Annotated[int, Field(ge=3)] = 5
    """Number of folds."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is tested."""
    seed: Seed = 0
    """Seed of the assignment to folds."""
    tests: Annotated[bool, LATER] = True
    """false: fold `fold` validates and the others train; figures are of what the epoch was chosen by (optimistic)."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Folded:
        if self.fold >= self.n:
            raise ValueError(f"fold {self.fold} does not exist: with n = {self.n} folds count from 0 to {self.n - 1}")
        return self

    @property
    def share_held_out(self) -> float:
        """Share of what the training parts consist of that tests too."""
        return 0.0

    @property
    def stratum(self) -> tuple[str, int] | None:
        """A target of which ranges are dealt out evenly, and how many of them."""
        return None

    def part_of(self, value: str) -> str:
        """The part that a value of the column `leaves_out` belongs to."""
        return value


class FoldSplit(Folded):
    """Cross-validation over groups, or over what several groups have in common (`by`)."""

    is_stratified = True
    fits = (Fit("data.targets", OWN, "is no target (data.targets)", "stratify"),)
    kind: Literal["folds"]
    by: Annotated[tuple[str, ...], LATER] = ()
    """Columns of the data: images in which all of these are equal (a state and a day) are never parted. `[]`: groups alone."""
    stratify: Annotated[str | None, LATER] = None
    """A target whose values are dealt out evenly (classes are anyway), by `bins` equally frequent ranges."""
    bins: Annotated[int, Field(ge=2), LATER] = 5
    """How many."""

    @model_validator(mode="after")
    def _bins_are_of_something(self) -> FoldSplit:
        if self.stratify is None and self.bins != FoldSplit.model_fields["bins"].default:
            raise ValueError("bins are of the target that stratify names")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return self.by

    @property
    def stratum(self) -> tuple[str, int] | None:
        return (self.stratify, self.bins) if self.stratify is not None else None


class SiteSplit(Folded):
    """Cross-validation over sites, so that none is on two sides: figures are of new ones."""

    leaves_out = "site"
    fits = (Fit("data.columns.site", GIVEN, "leaves sites out"),)
    kind: Literal["sites"]


class YearSplit(Folded):
    """Cross-validation over years, so that none is on two sides: figures are of new ones."""

    leaves_out = "date"
    fits = (Fit("data.columns.date", GIVEN, "leaves years out"),)
    kind: Literal["years"]

    def part_of(self, value: str) -> str:
        return value[:4]


class DomainSplit(Folded):
    """Cross-validation over domains: what is tested and what validates are domains never trained on, and some site-dates
    of those that are."""

    leaves_out = "domain"
    fits = (Fit("data.columns.domain", GIVEN, "leaves domains out"),)
    kind: Literal["domains"]
    held_out: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the training domains' site-dates that test too; as many validate. They give the in-domain figures."""

    @property
    def share_held_out(self) -> float:
        return self.held_out


class SpeciesSplit(Split):
    """Images of species that are trained on (in distribution, ID) and whole species that never are (out of distribution, OOD), of
    both some that validate and some that test. Test images are opened by `evaluate.split: test` alone."""

    dealer = "pipeline.data.dealing.by_species"
    opens_test = False
    fits = (
        Fit("data.label", GIVEN, "holds species out"),
        Fit("evaluate.split", ("test",), "trains on the images that validate", "trainval"),
        Fit(
            "chooses",
            (False,),
            "leaves no images to choose by",
            "trainval",
            hint="select.epoch last (or a head that chooses nothing)",
        ),
    )
    kind: Literal["species"]
    recipe: Literal["S", "D"] = "S"
    """S: a quarter of `share` in each of ID and OOD validation and ID and OOD test: of the species OOD, of the images ID. D:
    `share` in each, drawn one after another: OOD test, ID test, OOD validation, ID validation. A species whose images validate as
    OOD may so have images in test: these are ID for a final fit (trainval)."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.29
    """S: of species (OOD, rounded) and of images (ID), in all four together; D: of species and of images, in each."""
    seed: Seed = 42
    """Seed of the draw."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.001
    """D: how far the share of the images in OOD validation, and in test, may be from `share`; draws are made until it is not."""
    attempts: Positive = 1000
    """D: how many draws at most, of which the nearest is taken, which is said."""
    trainval: bool = False
    """The final fit: train on the images that validate too, which choose nothing then (select.epoch: last)."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        """`name: S29-42` and `name: D10` are short for recipe, share and seed, of which those that are given win."""
        if not isinstance(values, dict) or "name" not in values:
            return values
        found = NAMED_SPLIT.fullmatch(str(values["name"]))
        if not found or not int(found[2]):
            raise ValueError(
                f"name {values['name']}: a split is called as S29-42 (29 % held out, seed 42) or D10 (10 % in each part)"
            )
        said = {"recipe": found[1], "share": int(found[2]) / 100, "seed": int(found[3] or 0)}
        return said | {key: value for key, value in values.items() if key != "name"}

    @model_validator(mode="after")
    def _leaves_some(self) -> SpeciesSplit:
        if self.recipe == "D" and self.share >= 0.25:
            raise ValueError(f"share {self.share:g}: four parts of it leave nothing to train on; choose less than 0.25")
        return self

    @property
    def trained(self) -> tuple[str, ...]:
        return ("train", "validation") if self.trainval else ("train",)
