"""The images that a model was most wrong about, and the most ordinary ones. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.reporting.page.images import KEY, Images
from pipeline.reporting.page.section import Table, number, text

if TYPE_CHECKING:
    import pandas as pd


MOST_CASES, MOST_SAID = 10, 5
HEADER = ("image", "species", "predicted and observed", "error", "stands in")


def cases(said: pd.DataFrame, images: Images, is_classes: bool) -> Iterator[Table]:
    """Of predictions.parquet as `Images.joined` gives it: a row per image and target, or (`is_classes`) per image and class."""
    said = said.dropna(subset=["truth", "prediction"])
    if said.empty:
        return
    wrong = (_missed if is_classes else _apart)(said).sort_values()
    ordinary = (wrong - wrong.median()).abs().sort_values().index[:MOST_CASES]
    of = "how much is lacking to certainty of its class" if is_classes else "error in sds of the truth, mean over targets"
    for which, some in (("worst", wrong.index[::-1][:MOST_CASES]), ("most ordinary", ordinary)):
        yield _table(f"The {which} cases ({of})", said, some, wrong, images, is_classes)


def _apart(said: pd.DataFrame) -> pd.Series:
    """Of each image: how far predictions are from what was observed, in sds of that."""
    scale = said.groupby("target")["truth"].transform("std").replace(0, 1).fillna(1)
    return ((said["prediction"] - said["truth"]).abs() / scale).groupby([said[name] for name in KEY]).mean()


def _missed(said: pd.DataFrame) -> pd.Series:
    """Of each image: what is lacking to certainty of its class (where one of two has rows: of that, or of the other)."""
    true = said["prediction"].where(said["truth"] == 1, 1 - said["prediction"])
    kept = said["truth"] == 1 if said["target"].nunique() > 1 else said["truth"].notna()
    return (1 - true[kept]).groupby([said.loc[kept, name] for name in KEY]).mean()


def _table(caption: str, said: pd.DataFrame, which: pd.Index, wrong: pd.Series, images: Images, is_classes: bool) -> Table:
    by_image = said[said["id"].isin(which.get_level_values("id"))].groupby(KEY)
    rows = []
    for key in which:
        of = by_image.get_group(key)
        name, image = str(key[0]), int(of["image"].iloc[0])
        species = of["species"].iloc[0] if "species" in of else ""
        known = species if isinstance(species, str) else ""
        more = (number(wrong[key]), text(images.where(image)))
        rows.append([images.cell(name, image), text(known), text(_words(of, is_classes)), *more])
    return Table(caption, HEADER, rows).without_empty()


def _words(of: pd.DataFrame, is_classes: bool) -> str:
    """What was predicted of an image, and what is so."""
    if not is_classes:
        return "; ".join(f"{each.target}: {each.prediction:.3g}, is {each.truth:.3g}" for each in of.head(MOST_SAID).itertuples())
    names: Sequence[str] = of["target"].str.partition("=")[2]  # type: ignore[assignment]
    true = [name for name, is_true in zip(names, of["truth"], strict=True) if is_true == 1] or [f"not {next(iter(names))}"]
    ranked = sorted(zip(of["prediction"], names, strict=True), reverse=True)
    return f"is {true[0]}; said: " + ", ".join(f"{name} {value:.3g}" for value, name in ranked[:3])
