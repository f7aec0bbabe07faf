"""The block `data`: images, their targets and their splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.auxiliary import Auxiliary, AuxiliaryBins
from pipeline.config.decoding import Decoding
from pipeline.config.fits import GIVEN, Fit
from pipeline.config.kinds import kind_of
from pipeline.config.section import LATER, Formerly, Positive, Section, Seed
from pipeline.config.split import SourceSplit, Split

RESULT_KEYS = {
    "summary", "split", "selected_on", "n_images", "n_events", "config_hash", "feature_key", "data_signature",
    "evaluation", "schema_version", "classes", "challenge", "by_species", "by_domain", "neighbours",
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
    ranks: Annotated[tuple[str, ...], LATER] = ()
    """Columns with the ranks above the species (data.label), from the most general to the one above it: [family, genus]. `[]`:
    none, and where a task is of species those of the usual names that are there."""
    common: Annotated[str | None, LATER] = None
    """Column with the common name; null: unknown, and where a task is of species one of the usual names."""
    sex: Annotated[str | None, LATER] = None
    """Column with the sex; null: likewise."""
    view: Annotated[str | None, LATER] = None
    """Column with what is seen (dorsal, ventral); null: likewise."""


class Download(Section):
    """Which columns of a CSV say where its images are fetched from (`carabid fetch`), into the folder data.images."""

    url: str = "file_url"
    """Column with an image's address, http or https."""
    md5: str | None = "md5"
    """Column with the md5 of its content; null: there is none, and what arrives is not checked."""


class Long(Section):
    """A long table: a row for each image and target. It is read as one row for each image, with a column per target."""

    id: str = "sample_id"
    """Column that names a row: the image's name, the separator, the target's name (`ID1011485656__Dry_Clover_g`). What is read
    has the image's name there."""
    separator: Annotated[str, Field(min_length=1)] = "__"
    """What stands between them."""
    name: str = "target_name"
    """Column with the target's name."""
    value: str = "target"
    """Column with its value."""


class Sum(Section):
    """A target that is the sum of others."""

    whole: str
    """The target."""
    parts: Annotated[tuple[str, ...], Field(min_length=2)]
    """What it is the sum of."""


class Data(Decoding):
    """The images, how they are decoded, their targets and their splits."""

    fits = (
        *(Fit(f"data.columns.{name}", GIVEN, "reads images of their own", name) for name in ("colour_card", "scale_bar")),
        *(Fit("data.label", GIVEN, "is of classes", key) for key in ("positive", "tree", "shots")),
        Fit(
            "model.keeps_sums",
            (True,),
            "would change nothing: this model does not see to what targets add up to",
            "sums",
            hint="model.outputs.kind to parts or ratios, or model.head.kind to ridge_stack",
        ),
    )
    source: str
    """Hub data set (`owner/name`), a `save_to_disk` folder, a Parquet file or a folder of them, a CSV file, or a folder of images
    whose folders name the species (family/genus/species/, genus/species/, Genus_species/)."""
    revision: str | None = None
    """Commit, tag or branch of a Hub data set."""
    images: str | None = None
    """Folder that image paths of a CSV are relative to, a relative one beside the CSV or else in the current folder; null: the
    CSV's own folder."""
    download: Download | None = None
    """Download the images of a CSV that are not there, or not whole; `{}` for the usual columns; null: all are there."""
    long: Annotated[Long | None, LATER] = None
    """The table has a row for each image and target; `{}` for the usual columns; null: a row for each image."""
    columns: Columns
    targets: tuple[str, ...] = ()
    """Numeric columns to predict; all rows of one group share them."""
    sums: Annotated[tuple[Sum, ...], LATER] = ()
    """Targets that add up, each whole with its parts: {total: [green, dead], green: [grass, clover]}, all of them targets."""
    auxiliary: Annotated[tuple[Annotated[Auxiliary, *kind_of(Auxiliary)], ...], LATER] = ()
    """What is learnt beside the targets: [{kind: number, column: Height_Ave_cm}, {kind: name, column: State}]."""
    label: str | None = None
    """Column with the class to predict, instead of numbers; all rows of one group share it. `auto` where a task is of species:
    the column with its scientific name, known by the usual names."""
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
    tree: Annotated[str | None, LATER] = None
    """Newick file with a tree of the species (data.label)."""
    not_in_tree: Annotated[Literal["apart", "graft"], LATER] = "apart"
    """Species that the tree lacks: apart, like no other one; or grafted onto it where the most specific of their ranks
    (data.columns.ranks) that the tree has stands."""
    shots: Annotated[Positive | None, LATER] = None
    """Train on so many images of each class at most (few-shot); null: on all."""
    draw: Annotated[Seed, LATER] = 0
    """Which images these are: another draw for each number."""

    @property
    def parts_of(self) -> dict[str, tuple[str, ...]]:
        """Of each target that is a sum, what it is the sum of."""
        return {each.whole: each.parts for each in self.sums}

    @field_validator("sums", mode="before")
    @classmethod
    def _sums_by_name(cls, sums: Any) -> Any:
        """A YAML may write them as whole: [parts]."""
        return [{"whole": whole, "parts": parts} for whole, parts in sums.items()] if isinstance(sums, dict) else sums

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
        if why := _wrong_sums(self.parts_of, self.targets):
            raise ValueError(f"sums: {why}")
        if missing := [
            each.target for each in self.auxiliary if isinstance(each, AuxiliaryBins) and each.target not in self.targets
        ]:
            raise ValueError(f"auxiliary: {missing[0]} is no target (data.targets)")
        if taken := RESULT_KEYS & set(self.targets):
            raise ValueError(f"a target cannot be called {', '.join(sorted(taken))}: results.json has a key of that name")
        return self


def _wrong_sums(sums: Mapping[str, Sequence[str]], targets: Sequence[str]) -> str:
    """Why these cannot be sums of targets; empty if they can."""
    parts = [part for some in sums.values() for part in some]
    if unknown := [name for name in (*sums, *parts) if name not in targets]:
        return f"{unknown[0]} is no target (data.targets)"
    if twice := [part for part in parts if parts.count(part) > 1]:
        return f"{twice[0]} is a part of two wholes, or twice of one"
    for whole in sums:
        seen, inside = {whole}, list(sums[whole])
        while inside:
            if (part := inside.pop()) in seen:
                return f"{whole} is a part of itself"
            seen.add(part)
            inside += sums.get(part, ())
    return ""
