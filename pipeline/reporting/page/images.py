"""The images that predictions are of: what the table knows of them, where they stand, small pictures of them; as far as the data
are on this machine and as they were. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.data.dataset import Dataset, known_signature
from pipeline.data.thumbnails import thumbnail
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import load_config
from pipeline.reporting.page.section import Cell, Gallery
from pipeline.tasks import load_task

if TYPE_CHECKING:
    import pandas as pd

KEY = ["id", "group", "nth"]
"""What tells images apart: an id may be an individual's, and `nth` counts its images."""
KNOWN = ("site", "date")
"""Columns of the table that predictions do not keep."""
MOST = 200
"""Small pictures of one page: it shall open at once, and be sent by mail."""
MOST_EXPLAINED, WIDE = 12, 900
"""Pictures of where predictions come from, and pixels of their longer side."""


@dataclass
class Pictures:
    """How many small pictures a page may still have."""

    left: int = MOST


@dataclass(frozen=True)
class Images:
    """What predictions are of."""

    dataset: Dataset | None = None
    tested: str | None = None
    """The split that was predicted; None: all of them."""
    lacking: str = ""
    """Why there are none, in a sentence."""
    pictures: Pictures = field(default_factory=Pictures)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each image: KEY, site, date, and as `image` its position in the data set."""
        import pandas as pd

        if self.dataset is None:
            return pd.DataFrame(columns=[*KEY, *KNOWN, "image"])
        whole = self.dataset.table
        table = whole[["id", "group", "split", *KNOWN]].assign(image=range(len(whole)))
        table = table[table["split"] == self.tested] if self.tested else table
        return table.assign(nth=table.groupby(["id", "group"]).cumcount()).drop(columns="split")

    @cached_property
    def places(self) -> dict[tuple[str, str, int], int]:
        """KEY → position in the data set."""
        columns = (self.table[name].tolist() for name in (*KEY, "image"))
        return {(name, group, nth): image for name, group, nth, image in zip(*columns, strict=True)}

    def joined(self, said: pd.DataFrame) -> pd.DataFrame:
        """predictions.parquet with the columns nth, image (-1: not known), site and date."""
        said = said.drop(columns=[name for name in (*KNOWN, "image") if name in said])  # (a lab's own may stand there)
        if "nth" not in said:
            said = said.assign(nth=said.groupby(["id", "group", "target"]).cumcount())
        counted = [each.drop_duplicates(KEY).groupby(["id", "group"]).size() for each in (said, self.table)]
        alike = counted[0].index[counted[0].eq(counted[1].reindex(counted[0].index))]  # one that cannot be read shifts the others
        known = self.table[self.table.set_index(["id", "group"]).index.isin(alike)]
        merged: Any = said.merge(known.astype({"nth": "int64"}), how="left", on=KEY)
        return merged.assign(image=merged["image"].astype("float64").fillna(-1).astype("int64"))

    def cell(self, name: str, image: int, text: str = "") -> Cell:
        """An image, by its name or what else is to be said of it, with a small picture and where it lies."""
        if self.dataset is None or image < 0:
            return Cell(text or name, name)
        return Cell(text or name, name, self._picture(image), self._link(image))

    def where(self, image: int) -> str:
        """The row of the table that an image stands in; empty where that is not known."""
        return "" if self.dataset is None or image < 0 else self.dataset.where(image)

    def _picture(self, image: int) -> str:
        assert self.dataset is not None
        if self.pictures.left <= 0:
            return ""
        with suppress(UserError, WorkError, OSError):  # a page is no place to learn of a damaged image
            self.pictures.left -= 1
            return thumbnail(self.dataset.image(image))
        return ""

    def _link(self, image: int) -> str:
        """The image's file, where it has one of its own."""
        assert self.dataset is not None
        split, row = self.dataset.table[["source_split", "row"]].iloc[image]
        file = self.dataset.source.file(str(split), int(row), self.dataset.image_column)
        return file.as_uri() if file else ""


def images_of(trial: TrialDir, results: Mapping[str, Any], pictures: Pictures) -> Images:
    """The images that a trial, or trials of all folds, were tested on; none where the data are elsewhere, or others by now."""
    try:
        config = load_config(trial.config)
        known = known_signature(config.data)
        if known is None:
            return Images(lacking="Without pictures, sites and dates: the data are not on this machine.")
        if known != results.get("data_signature"):
            return Images(lacking="Without pictures, sites and dates: the data have changed since.")
        tested = None if results.get("of") == "folds" else str(results["split"])
        return Images(load_task(config.task).load(config.data), tested, pictures=pictures)
    except (UserError, WorkError, OSError) as error:
        return Images(lacking=f"Without pictures, sites and dates: {error}")


def explained(trial: TrialDir) -> list[Gallery]:
    """The pictures that `carabid explain` has left in a trial's folder."""
    from PIL import Image

    cells = []
    for path in sorted(trial.explained.glob("*.png"))[:MOST_EXPLAINED]:
        with suppress(OSError), Image.open(path) as picture:
            cells.append(Cell(path.stem, path.stem, thumbnail(picture.convert("RGB"), WIDE), path.resolve().as_uri()))
    return [Gallery("Where in images predictions come from", cells, wide=True)] if cells else []
