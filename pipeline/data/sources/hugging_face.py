"""What `datasets` reads: a folder that `save_to_disk` wrote, and a data set of the Hub with the cache it lies in."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hub
from pipeline.config.data import Data
from pipeline.config.identity import image_columns
from pipeline.data.sources.arrow import TEXT, is_plain, names_in, to_frame, unwrapped
from pipeline.data.sources.base import Source, encoded
from pipeline.disk.reading import reading
from pipeline.errors import NotFetched, UserError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa


class _HuggingFaceSource(Source):
    """What a `save_to_disk` folder and a Hub data set share: Arrow files, memory-mapped by `datasets`."""

    base: Path | None

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.base = Path(data.images).expanduser() if data.images else None
        self._image_columns: dict[tuple[str, str], datasets.Dataset] = {}

    @abstractmethod
    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        """The data set as `datasets` gives it."""

    @cached_property
    def _loaded(self) -> dict[str, datasets.Dataset]:
        loaded = self._load()
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def splits(self) -> list[str]:
        return [str(name) for name in self._loaded]

    def columns(self, split: str) -> list[str]:
        return list(self._loaded[split].column_names)

    def table(self, split: str) -> pd.DataFrame:
        schema = self._loaded[split].features.arrow_schema
        return to_frame(self._read(split, [field.name for field in schema if is_plain(field.type)]))

    def rows(self, split: str) -> int:
        return len(self._loaded[split])

    def image_names(self, split: str, column: str) -> list[str | None]:
        kind = self._loaded[split].features.arrow_schema.field(column).type
        return names_in(kind, lambda leaf: self._read(split, [leaf]), column, len(self._loaded[split]))

    def paths(self, split: str, column: str) -> list[str | None] | None:
        dtype = getattr(self._loaded[split].features[column], "dtype", None)
        return self.image_names(split, column) if dtype in TEXT else None

    def folder(self) -> Path | None:
        return self.base

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        return encoded(self._images(split, column)[row][column], self.base)

    def where(self, split: str, row: int) -> str:
        return f"{self.data.source}, split {split}, row {row} (counted from 0)"

    def _read(self, split: str, columns: list[str]) -> pa.Table:
        rows = self._loaded[split]
        if any(name not in rows.column_names for name in columns):
            rows = self._undecoded(split, columns[0].rpartition(".")[0]).flatten()
        return unwrapped(rows.select_columns(columns).with_format("arrow")[:])

    def _undecoded(self, split: str, column: str) -> datasets.Dataset:
        """The column alone, images as {bytes, path}."""
        from datasets import Image

        rows = self._loaded[split].select_columns([column])
        return rows.cast_column(column, Image(decode=False)) if isinstance(rows.features[column], Image) else rows

    def _images(self, split: str, column: str) -> datasets.Dataset:
        if (split, column) not in self._image_columns:
            self._image_columns[split, column] = self._undecoded(split, column)
        return self._image_columns[split, column]


class DiskSource(_HuggingFaceSource):
    """A folder that `save_to_disk` wrote: a DatasetDict, or a Dataset, which is one split called `train`."""

    kind = "disk"

    def __init__(self, data: Data, folder: Path) -> None:
        super().__init__(data)
        self.place = folder
        self.base = self.base or folder

    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        from datasets import load_from_disk

        with reading(self.place, "`datasets` cannot load this folder.", UserError):
            return load_from_disk(str(self.place))

    def table_files(self) -> list[Path]:
        return [path for path in sorted(self.place.resolve().rglob("*")) if path.suffix in (".arrow", ".json")]

    def image_files(self) -> Iterator[str]:
        infos = list(self.place.rglob("dataset_info.json"))
        if any(_image_is_text(path, column) for path in infos for column in image_columns(self.data)):
            yield from super().image_files()  # (known from the small JSON file, so that a signature need not import `datasets`)


AGAIN = "Fetch or save the data set again."


def _described(info: Path) -> dict[str, Any]:
    with reading(info, AGAIN, UserError):
        return dict(json.loads(info.read_text(encoding="utf-8")))


def _image_is_text(info: Path, column: str) -> bool:
    with reading(info, AGAIN, UserError):
        return dict(dict(_described(info).get("features") or {}).get(column) or {}).get("dtype") in TEXT


class HubSource(_HuggingFaceSource):
    """A data set of the Hugging Face Hub, downloaded by `datasets` or found in its cache."""

    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        from datasets import load_dataset

        try:
            loaded = load_dataset(self.data.source, revision=self.data.revision)
        except Exception as error:
            what = f"data.source {self.data.source} (no folder here, so a data set of the Hub)"
            what += f", revision {self.data.revision}" if self.data.revision else ""
            raise hub.not_loaded(what, error, _cache(self.data.source)) from error
        self._check_revision(_arrow_folder(dict(loaded)).name)
        return loaded

    def _check_revision(self, commit: str) -> None:
        """Offline, `datasets` takes whatever revision is in its cache, without a word."""
        wanted = self._wanted()
        if wanted and hub.COMMIT.fullmatch(commit) and wanted != commit:
            holds = f"the cache ({_cache(self.data.source)}) holds {self.data.source} at {commit} instead"
            raise NotFetched(f"data.revision {self.data.revision}: {holds}.")

    def _wanted(self) -> str | None:
        """The commit that data.revision stands for; None if it names none, or nobody here knows."""
        return hub.commit_of(self.data.source, self.data.revision, "datasets") if self.data.revision else None

    def is_here(self) -> bool:
        return "_loaded" in self.__dict__ or self._only_cached() is not None

    def splits(self) -> list[str]:
        """From the cached data set's own description where there is one, so that a plan need not import `datasets`."""
        cached = self._only_cached()
        described = _described(cached / "dataset_info.json").get("splits") if cached else None
        return list(described) if described else super().splits()

    @property
    def kind(self) -> str:
        return f"hub:{self.data.source}@{self._folder().name}"

    def table_files(self) -> list[Path]:
        return sorted(path for path in self._folder().resolve().iterdir() if path.suffix in (".arrow", ".json"))

    def image_files(self) -> Iterator[str]:
        return iter(())  # the commit says which images there are, and listing them would import `datasets`

    def _folder(self) -> Path:
        return self._only_cached() or _arrow_folder(self._loaded)

    def _only_cached(self) -> Path | None:
        """The cached data set's folder where there is exactly one, found without importing `datasets`."""
        if "_loaded" in self.__dict__:
            return None
        found = hub_caches(self.data.source)
        return found[0] if len(found) == 1 and self._wanted() in (None, found[0].name) else None


def hub_caches(source: str) -> list[Path]:
    """Folders in which `datasets` keeps a Hub data set (<config>/<version>/<commit>/), told from the environment."""
    owner, name = source.split("/")
    # `datasets` writes the name in snake case; names that differ in underscores alone count as several, never as one.
    found = _cache_root().glob(f"{owner}___*")
    bare = name.replace("_", "").lower()
    same = [path for path in found if path.name.removeprefix(f"{owner}___").replace("_", "").lower() == bare]
    return [info.parent for path in same for info in path.glob("*/*/*/dataset_info.json")]


def _cache_root() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()


def _cache(source: str) -> Path:
    """The folder that holds a data set in every version; where there is none yet, the one that they all lie in."""
    found = hub_caches(source)
    return found[0].parents[2] if found else _cache_root()


def _arrow_folder(splits: dict[str, datasets.Dataset]) -> Path:
    """Where `datasets` keeps the Arrow files of a loaded Hub data set; the folder's name is the commit."""
    return Path(next(iter(splits.values())).cache_files[0]["filename"]).parent
