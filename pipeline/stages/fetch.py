"""Bringing data and weights into the cache on a node that has internet, and checking them, so that jobs run without. What has
been checked is kept in features/records/ under what it was checked for (the images' content, the weights' files with their sizes
and times), so that fetching again looks at nothing twice."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.amounts import format_bytes
from pipeline.backbones import load_backbone, load_towers, weights_files
from pipeline.config.identity import digest, images_of, plain, texts_from, towers_of
from pipeline.config.trial import Config
from pipeline.data.dataset import BadImage, Dataset
from pipeline.data.sources import open_source
from pipeline.data.sources.csv_files import CsvSource
from pipeline.data.sources.downloads import download
from pipeline.data.texts import texts_of
from pipeline.disk.layout import record_path
from pipeline.disk.provenance import installed_version, now
from pipeline.disk.writing import read_json, write_json
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.features.hashes import DataRecord, data_record, weights_record, weights_signature
from pipeline.features.store import refuse_bad
from pipeline.features.text_hashes import keep_texts, text_weights
from pipeline.progress import progress
from pipeline.tasks import load_task


def run(configs: Sequence[Config]) -> None:
    """Download (or find) the data sets and weights of these configurations, each once, and read all of them. Says where they lie,
    and keeps their content hashes for later. Raises UserError for images that cannot be read where data.on_bad_image is error,
    WorkError where the Hub cannot be reached or an image cannot be downloaded."""
    try:
        for config in {str([*images_of(config.data), config.data.download]): config for config in configs}.values():
            _fetch_data(config)
        for config in {config.backbone: config for config in configs}.values():
            _fetch_weights(config)
        reading = [config for config in configs if "text" in towers_of(config)]
        for config in {config.backbone: config for config in reading}.values():
            _fetch_texts(config)
        for config in {str([*images_of(config.data), *texts_from(config)]): config for config in reading}.values():
            dataset: Dataset = load_task(config.task).load(config.data)
            keep_texts(config, dataset.signature(), texts_of(dataset, config.texts))  # for plans and estimates
    except NotFetched as error:  # its advice is to do what we are doing
        raise WorkError(f"{error.why} Run this where there is internet, and HF_HUB_OFFLINE is not set.") from error
    print("All of it is here and can be read: jobs can run without internet.", flush=True)


# ---------------------------------------------------------------- data
def _download(config: Config) -> None:
    """Bring the images that a CSV gives the addresses of. Raises UserError for data of another form."""
    columns = config.data.download
    if columns is None:
        return
    source = open_source(config.data.model_copy(update={"long": None}))
    if not isinstance(source, CsvSource):
        raise UserError(f"data.download is for CSV files, and data.source {config.data.source} is none: set it to null.")
    download(config, source, columns)


def _fetch_data(config: Config) -> None:
    _download(config)
    dataset: Dataset = load_task(config.task).load(config.data)
    data = data_record(config, dataset)
    bad, when = _unreadable(config, dataset, data)
    read = f"content {data.content[:12]}, {len(bad) or 'none'} unreadable{when}"
    print(f"data: {config.data.source}: {data.n} images, {_place(map(Path, dataset.source.files()))}, {read}", flush=True)
    if config.data.on_bad_image == "error":
        refuse_bad(bad, "these data")
    for message in list(bad.values())[:1]:
        print(f"left out, because data.on_bad_image is skip: {message}", flush=True)


def _unreadable(config: Config, dataset: Dataset, data: DataRecord) -> tuple[dict[int, str], str]:
    """Images that cannot be decoded, with the reason; and in words, when that was found out if it was before."""
    made_of = [data.content, installed_version("pillow"), *([choices] if (choices := plain(config.data.decoding)) else [])]
    path = record_path(config, "decoded", digest(made_of)[:16])
    if path.exists():
        known = read_json(path)
        return _decode(config, dataset, known["unreadable"]), f" (checked {known['checked']})"
    bad = _decode(config, dataset, range(len(dataset)))
    write_json(path, {"unreadable": list(bad), "checked": now()})
    return bad, ""


def _decode(config: Config, dataset: Dataset, positions: Sequence[int]) -> dict[int, str]:
    """Position of each of these images that cannot be read → why."""

    def problem(i: int) -> str:
        try:
            dataset.image(i)
        except BadImage as error:
            return str(error)
        return ""

    bad: dict[int, str] = {}
    threads = config.resources.decode_threads
    with ThreadPoolExecutor(threads) as pool, progress("read images", len(positions)) as advance:
        for i, message in zip(positions, pool.map(problem, positions), strict=True):
            bad |= {i: message} if message else {}
            advance(1)
    return bad


# ---------------------------------------------------------------- weights
def _fetch_weights(config: Config) -> None:
    """Loading is the check: the weights fit their architecture, and the transform can be made."""
    path = _weights_check(config)
    when = f" (checked {read_json(path)['checked']})" if path.exists() else ""
    weights = weights_record(config, partial(load_backbone, config.backbone), again=not when)
    if not when:
        write_json(_weights_check(config), {"checked": now()})
    files = weights_files(config.backbone)
    place = _place(files) if files else "made without files"
    print(f"weights: {config.backbone.display_name}: {place}, content {weights.weights[:12]}, they load{when}", flush=True)


def _fetch_texts(config: Config) -> None:
    """The text tower and its tokenizer, whose files may lie elsewhere: both are loaded, and a text is read."""
    towers = load_towers(config.backbone)
    towers.text.transform("a photo of a beetle")
    texts = text_weights(config, lambda: towers)
    print(f"texts: {config.backbone.display_name}: content {texts.weights[:12]}, the tower and its tokenizer load", flush=True)


def _weights_check(config: Config) -> Path:
    """Where it stands that weights and libraries as they are now have been checked."""
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in weights_files(config.backbone)]
    return record_path(config, "loaded", digest([weights_signature(config.backbone), files])[:16])


def _place(files: Iterable[Path]) -> str:
    """Size and folder of files, in words."""
    there = [path for path in files if path.is_file()]
    size = sum(path.stat().st_size for path in there)
    return f"{format_bytes(size)} in {os.path.commonpath(there)}"
