"""Tables as labs have them: cells that are empty, sentinels, other encodings and separators, columns of other types."""

from __future__ import annotations

import csv
import io
import random
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.watching.preflight import preflight
from pipeline.tasks import load_task
from tests.fuzz.values import spoil_bytes, spoil_text
from tests.fuzz.verdict import Case

if TYPE_CHECKING:
    import pyarrow as pa

CELLS: tuple[Any, ...] = (
    "", " ", "NA", "nan", "NULL", "N/A", "-", "?", "none", "-9999", "9999", "1e308", "-1e999", "inf", "1,5", "1.5e",
    "0x10", "1_0",
    "2024-02-30", "2024-01-01T25:00", "12/31/2024", "a" * 200_000, "a\0b", 'a"b', "a\nb", "a,b", "é", "e\u0301", "\u202e",
    "\ufeff",
    "../../etc/passwd", "C:\\images\\1.JPG", "http://x/y.jpg", "0.JPG", "0.jpg", "images/0.png", "/", "~", "True", "001",
    "1.0", "+1",
    "#N/A N/A", "#VALUE!", "1.#QNAN", "\\N", "(null)", "--", "—", ".", "-9999.0", "-999.25", "9.96921e36", "-3.4e38", "-32768",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, 1, 1.5, True, float("nan"), float("inf"), 10**18, b"", b"\x89PNG", "x", "", [], [1],
    {"bytes": b"x", "path": None}, {"a": 1},
    {"bytes": None, "path": None}, {"bytes": None, "path": "0.png"},
)  # fmt: skip
"""What a Parquet column may hold."""
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-32", "cp1252")
SEPARATORS = (",", ",", ",", ";", ";", "\t", "|", " ")
BEFORE = (
    "",
    "",
    "",
    "",
    "sep=;\r\n",
    "sep=,\n",
    '"sep=;"\n',
    "sep=\t\n",
    "sep=\n",
    'sep="\n',
    "\n\n",
    ";;\n",
    ",,\n",
    "\r\n \r\n",
)
"""What stands before the header."""
ODD_NAMES = ("size, mm", "size; mm", "weight\n(g)", 'the "name"', "a|b", "a\tb")
"""Of columns, as Excel writes them."""
KINDS = ("string", "large_string", "string_view", "dictionary", "dictionary", "binary")
"""As which types Parquet may keep text."""
NAMES = ("labels.csv", "labels.csv", "LABELS.CSV", "labels.tsv", "labels.txt", "train.csv", "labels")
SPLITS = ("folds", "sites", "years", "domains", "source")
WORDS = ("train", "validation", "test", "Train", "val", "TEST", "Test", "", "dev", "train ", "all", "unlabelled", "NA", "none")
MISSING = ([], ["NA", -9999], [-9999.0], ["9.96921e36", "."], ["train"], [""])
"""What may stand for nothing."""


@cache
def experiment(task: str, split: str) -> Any:
    """The configuration that reads such tables."""
    config = "classify" if task == "classify" else "regress"
    columns = "data.columns={image: filename, id: id, group: plant, site: site, date: date, domain: domain, species: species}"
    return load_experiment(PROJECT / "configs" / "generic" / f"{config}.yaml", (columns, f"data.split={{kind: {split}}}")).config


def table_case(number: int, draw: random.Random, place: Path) -> Case:
    """A CSV or Parquet file of some twenty rows, spoilt, as a task reads it."""
    task, split = draw.choice(("classify", "regress")), draw.choice(SPLITS)
    rows = [row(i, draw) for i in range(draw.choice((0, 1, 3, 20, 20, 20, 40)))]
    for _ in range(draw.randrange(4)):
        spoil_column(rows, draw)
    if draw.random() < 0.3:
        respell_splits(rows, draw)
    folder = place / f"table{number}"
    folder.mkdir(exist_ok=True)
    path = write_csv(rows, folder, draw) if draw.random() < 0.6 else write_parquet(rows, folder, draw)
    config = experiment(task, split)
    source = str(path if draw.random() < 0.9 else folder)
    data = config.data.model_copy(update={"source": source, "on_bad_image": draw.choice(("error", "skip"))})
    if draw.random() < 0.3:
        data = data.model_copy(update={"missing": tuple(map(str, draw.choice(MISSING)))})
    paths = config.paths.model_copy(update={"features": str(folder / "features")})
    config = config.model_copy(update={"data": data, "paths": paths})
    return Case(f"tables {number}", lambda: read(config), (folder.name, "data.", "column"))


def row(i: int, draw: random.Random) -> dict[str, Any]:
    """A row as it should be."""
    return {
        "filename": f"images/{i}.png", "id": f"s{i}", "plant": f"p{i // 2}", "label": "ab"[i // 2 % 2],
        "target": f"{i // 2 * 0.5}",
        "site": "STU"[i % 3], "date": f"20{10 + i % 6}-07-01", "domain": f"D{i % 4}", "species": "Carabus auratus",
        "split": draw.choice(("train", "train", "validation", "test")),
    }  # fmt: skip


def spoil_column(rows: list[dict[str, Any]], draw: random.Random) -> None:
    """One thing wrong with a column, in one row, some, or all."""
    if not rows:
        return
    name, how = draw.choice(list(rows[0])), draw.randrange(7)
    chosen = rows if draw.random() < 0.3 else draw.sample(rows, min(len(rows), draw.randrange(1, 4)))
    value = draw.choice(CELLS)
    for each in chosen if how < 4 else rows:
        if how < 3:
            each[name] = value
        elif how == 3:
            each[name] = draw.choice(WORDS) if name == "split" else draw.choice(CELLS)
        elif how == 4:
            each.pop(name, None)
        else:
            each[f"{name}{draw.choice(('', ' ', '.1'))}" if how == 5 else name.upper()] = each.pop(name, "")


def respell_splits(rows: list[dict[str, Any]], draw: random.Random) -> None:
    """One split, or some of its rows, called otherwise."""
    old, new = draw.choice(WORDS[:3]), draw.choice(WORDS)
    for each in rows:
        if each.get("split") == old and draw.random() < 0.5:
            each["split"] = new


def write_csv(rows: list[dict[str, Any]], folder: Path, draw: random.Random) -> Path:
    names = list(rows[0]) if rows else ["filename", "label"]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw.choice(SEPARATORS), quoting=draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    extra = draw.choice(([], [], [], ["", ""]))
    odd = draw.sample(ODD_NAMES, draw.choice((0, 0, 1, 2)))
    writer.writerow([*odd[:1], *names, *odd[1:], *extra])
    some = [draw.choice(("1,5", "2", "")) for _ in odd]
    writer.writerows([*some[:1], *(each.get(name, "") for name in names), *some[1:], *extra] for each in rows)
    content = draw.choice(BEFORE) + text.getvalue()
    for _ in range(draw.choice((0, 0, 0, 1))):
        content = spoil_text(content, draw)
    encoded = content.encode(draw.choice(ENCODINGS), errors="replace")
    path = folder / draw.choice(NAMES)
    path.write_bytes(spoil_bytes(encoded, draw) if draw.random() < 0.2 else encoded)
    return path


def write_parquet(rows: list[dict[str, Any]], folder: Path, draw: random.Random) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(rows[0]) if rows else ["filename", "label"]
    columns = {name: [typed(name, each.get(name)) for each in rows] for name in names}
    if names and draw.random() < 0.5:
        columns[draw.choice(names)] = [draw.choice(VALUES)] * len(rows)
    path = folder / draw.choice(("train.parquet", "labels.parquet", "LABELS.PARQUET"))
    pq.write_table(retyped(pa.table(columns), draw), path, row_group_size=draw.choice((3, 1000)))
    if draw.random() < 0.4:
        path.write_bytes(spoil_bytes(path.read_bytes(), draw))
    return path


def retyped(table: pa.Table, draw: random.Random) -> pa.Table:
    """With text, and now and then something else, kept as other types."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if field.type != pa.null() and draw.random() < (0.5 if field.type == pa.string() else 0.1):
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                kind = draw.choice(KINDS)
                of = table.column(place)
                column = of.dictionary_encode() if kind == "dictionary" else of.cast(getattr(pa, kind)())
                table = table.set_column(place, field.name, column)
    return table


def typed(name: str, cell: Any) -> Any:
    """Numbers as numbers, where a cell is one."""
    try:
        return float(cell) if name == "target" else cell
    except (TypeError, ValueError):
        return None


def read(config: Config) -> None:
    """As training reads it, and as it is looked at before; every warning is in words, and every row has a split."""
    dataset = load_task(config.task).load(config.data)
    assert set(dataset.table["split"]) <= {"train", "validation", "test"}
    if any(len(warning) > 2000 for warning in dataset.warnings):
        raise UserError("\n".join(dataset.warnings))
    dataset.signature()
    assert preflight([config]) == preflight([config])
