"""Where data come from, and the choice among them: a Hub data set, a `save_to_disk` folder, Parquet files, CSV files, or images
in folders that name species.

A source knows split names, tables without images, and the encoded bytes of one image; it knows nothing of targets,
groups or folds (`data/dataset.py`). `base.Source` says what each kind offers: `csv_files`, `parquet`, `image_folder`, and
`hugging_face` for the Hub and `save_to_disk`; `long` makes one row of the several that an image has. `names` tells splits from
file names, `arrow` is what Parquet and `datasets` have in common, `downloads` brings the images of a CSV that names their
addresses.
The package loads no torch, and pandas, pyarrow and datasets only where they are needed.
"""

import os
import re
from contextlib import suppress
from pathlib import Path

from pipeline.config.data import Data
from pipeline.data.sources.base import Source
from pipeline.data.sources.csv_files import SUFFIXES, CsvSource
from pipeline.data.sources.hugging_face import DiskSource, HubSource
from pipeline.data.sources.image_folder import FolderSource
from pipeline.data.sources.long import LongSource
from pipeline.data.sources.names import group_by_split
from pipeline.data.sources.parquet import ParquetSource
from pipeline.errors import UserError

KINDS: dict[str, type[CsvSource] | type[ParquetSource]] = {
    ".csv": CsvSource, ".tsv": CsvSource, ".txt": CsvSource, ".parquet": ParquetSource,
}  # fmt: skip
"""What reads a file, by the end of its name."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_source(data: Data) -> Source:
    """The source that `data.source` names, with a row for each image. Raises UserError where there is none that can be read."""
    source = _open(data)
    return source if data.long is None else LongSource(data, source, data.long)


def _open(data: Data) -> Source:
    path = Path(data.source).expanduser()
    if os.path.isdir(path):  # (Path's own raises for a name that is too long)
        return _open_folder(data, path)
    if os.path.isfile(path):
        if path.suffix.lower() not in KINDS:
            raise UserError(f"data.source {path}: a table's name ends in {', '.join(KINDS)}. Name one, or a folder of them.")
        return KINDS[path.suffix.lower()](data, path.parent, {"train": [path]})
    if HUB_NAME.fullmatch(data.source) and path.suffix.lower() not in KINDS:
        return HubSource(data)
    raise UserError(
        f"data.source {data.source}: there is no such file or folder (seen from {Path.cwd()}), and it is not the name "
        "of a Hub data set (owner/name). Correct data.source."
    )


def _open_folder(data: Data, path: Path) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return DiskSource(data, path)
    parquet = _visible(path, "**/*", ".parquet")
    tables = [table for suffix in SUFFIXES for table in _visible(path, "*", suffix)]
    if parquet and tables:
        raise UserError(f"data.source {path}: the folder holds both Parquet and CSV files. Name the file to read.")
    if parquet:
        return ParquetSource(data, path, group_by_split(parquet, path))
    if tables:
        return CsvSource(data, path, group_by_split(tables, path))
    if images := _images(path):
        return FolderSource(data, path, images)
    raise UserError(
        f"data.source {path}: the folder holds no data set: no dataset_dict.json (save_to_disk), no .parquet file, no .csv or "
        ".tsv file, and no folders of images that name species. Name the folder that holds one."
    )


def _images(folder: Path) -> list[str]:
    """The images in the folders of a folder, with those in none; nothing where all are in none."""
    from pipeline.data.opening import find_images  # Pillow: not for plans of tables

    with suppress(UserError):
        names = find_images(folder).names
        return names if any("/" in name for name in names) else []
    return []


def _visible(folder: Path, pattern: str, suffix: str) -> list[Path]:
    """Files in `folder` whose name ends so, in letters of any case; hidden ones (temporary files among them) are left out."""
    any_case = "".join(f"[{sign}{sign.upper()}]" for sign in suffix)
    found = (p for p in folder.glob(pattern + any_case) if p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
