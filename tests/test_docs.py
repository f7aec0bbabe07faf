"""What the documentation shows is what there is: code in it stands in the files that it names, links lead to files, command lines
are ones that the commands take, and those that cost nothing are run."""

from __future__ import annotations

import csv
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from pipeline.cli.commands import app
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment
from pipeline.tasks import generator

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text() for page in PAGES}
BLOCKS = [
    (page, *found)
    for page, text in TEXTS.items()
    for found in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", text, re.M | re.S)
]


def test_there_is_code_to_hold() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize(
    ("page", "source", "code"), BLOCKS, ids=[f"{page.stem}-{source}-{i}" for i, (page, source, _) in enumerate(BLOCKS)]
)
def test_code_in_the_documentation_stands_in_the_file_that_it_names(page: Path, source: str, code: str) -> None:
    assert code in (PROJECT / source).read_text(), f"{page.name}: {source} has other code now"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


# ---------------------------------------------------------------- command lines
FENCED = re.compile(r"^ *```[^\n]*\n(.*?)^ *```$", re.M | re.S)
INDENTED = re.compile(r"^ {4,}(\S.*)$", re.M)
BACKTICKS = re.compile(r"`([^`]+)`")
GROUP = typer.main.get_command(app)
COMMANDS = GROUP.commands  # type: ignore[attr-defined]
SPECIES_JOB = "train_species.sh"


class Line(NamedTuple):
    """A command line: `carabid plan …` or `sbatch jobs/…`."""

    command: str
    """Of carabid; of a job's script the one that it runs."""
    words: tuple[str, ...]
    """Behind it, as a shell splits them."""
    is_mention: bool
    """Whether it stands in a sentence, where `carabid predict` alone will do."""


def code_of(text: str) -> Iterator[tuple[str, bool]]:
    """Each line of a page's code, continued ones joined, and whether it stands in a sentence or a table."""
    text = text.replace("\\\n", " ")
    for block in FENCED.findall(text):
        yield from ((line.strip(), False) for line in block.splitlines())
    text = FENCED.sub("", text)
    yield from ((line, False) for line in INDENTED.findall(text))
    yield from ((" ".join(span.split()), True) for span in BACKTICKS.findall(INDENTED.sub("", text)))


def job_line(script: str, words: list[str], is_mention: bool) -> Line:
    """What `sbatch jobs/…` runs: a stage, or the training of the YAML that the script names."""
    text = (PROJECT / script).read_text()
    stage = re.findall(r"^(?:run )?carabid (\w+) \"\$@\"$", text, re.M)[:1] or ["train"]
    own = re.findall(r"^train_trials (configs/\S+)", text, re.M)
    if script.endswith(SPECIES_JOB):
        own = [f"configs/species/{words.pop(0) if words and words[0].endswith('.yaml') else 'finetune.yaml'}"]
    return Line(stage[0], (*own, *words), is_mention)


def words_of(line: str) -> list[str]:
    """As a shell splits them, without a comment behind them and what is abridged."""
    return [word for word in shlex.split(re.sub(r"\s#\s.*", "", line)) if word != "…"]


def lines_of(text: str) -> Iterator[Line]:
    """The command lines of a page."""
    for code, is_mention in code_of(text):
        if found := re.match(r"(?:(?:srun|torchrun) .*)?\b(?:carabid|pipeline\.cli) (.+)", code):
            name, *words = words_of(found[1])
            yield Line(name, tuple(words), is_mention)
        elif found := re.match(r"sbatch (?:--\S+ )*(jobs/\S+)(.*)", code):
            yield job_line(found[1], words_of(found[2]), is_mention)


COMMENTED = sorted([*(PROJECT / "configs").rglob("*.yaml"), *(PROJECT / "jobs").glob("*.sh")])


def commented(path: Path) -> Iterator[Line]:
    """The command lines in the comments of a configuration or a job's script, without what is explained behind two blanks."""
    for code in re.findall(r"^# +((?:carabid|sbatch) .+?)(?:  .*)?$", path.read_text(), re.M):
        yield from lines_of(f"    {code}")


LINES = {page: list(dict.fromkeys(lines_of(text))) for page, text in TEXTS.items()}
EACH = list(dict.fromkeys(line for lines in LINES.values() for line in lines))
DRAFTED = {Path(line.words[0]).with_suffix(".yaml").name for line in EACH if line.command == "init" and line.words}
"""What `carabid init` writes, of a table that nobody has described."""
IN_COMMENTS = list(dict.fromkeys(line for path in COMMENTED for line in commented(path)))


def said(line: Line) -> str:
    return shlex.join([line.command, *line.words])


def test_there_are_command_lines_to_hold() -> None:
    assert {line.command for line in EACH} >= set(COMMANDS) - {"demo", "collect"}
    assert len(LINES[PROJECT / "docs" / "coming-from.md"]) >= 40 and len(IN_COMMENTS) >= 20


@pytest.mark.parametrize("line", dict.fromkeys([*EACH, *IN_COMMENTS]), ids=said)
def test_a_command_line_is_one_that_the_commands_take(line: Line) -> None:
    """Its options are there, its YAML too, and its overrides name keys of it and values that go together."""
    if line.command.startswith("--"):  # of no command
        assert line.command in {"--help", *(name for each in GROUP.params for name in each.opts)}
        return
    command = COMMANDS[line.command]
    if line.is_mention and not re.search(r"[=/.]", said(line)):  # `carabid predict --group` of a sentence
        assert {word for word in line.words if word.startswith("-")} <= {
            "--help",
            *(name for each in command.params for name in each.opts),
        }
        return
    found = command.make_context(line.command, list(line.words)).params
    if path := yaml_of(str(found.get("config"))):
        assert load_experiment(path, found["overrides"] or ()).trials


def yaml_of(config: str) -> Path | None:
    """The project's file that a line names: one of configs/, or a reader's own that a page shows (docs/examples); else None."""
    found = PROJECT / config if config.startswith("configs/") else PROJECT / "docs" / "examples" / config
    return found if found.suffix == ".yaml" and "<" not in config and config not in DRAFTED else None


# ---------------------------------------------------------------- run
RUN = ("plan", "split", "submit")
"""What shows what would be done, `submit` by `--dry-run`, and writes nothing but a record."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with generated data, called as the pages call a reader's own."""
    folder = tmp_path_factory.mktemp("desk")
    generator("species")(folder / "photos", seed=0, scale=0.3, form="folder")
    generator("butterflies")(folder / "wings", seed=0, scale=0.1)
    generator("biomass")(folder / "quadrats", seed=0, scale=0.01)
    photos = [path.relative_to(folder / "photos") for path in sorted((folder / "photos").rglob("*.jpg"))]
    write_table(folder / "labels.csv", [{"filename": str(path), "label": path.parts[0]} for path in photos])
    wings = read_table(folder / "wings" / "butterflies.csv")
    write_table(folder / "butterfly_anomaly_train.csv", wings)
    (folder / "wing-patterns").mkdir()
    write_table(folder / "wing-patterns" / "metadata.csv", [row | {"subspecies": f"s{i % 9}"} for i, row in enumerate(wings)])
    quadrats = read_table(folder / "quadrats" / "train.csv")
    write_table(folder / "quadrats" / "train.csv", [later(row, years) for years in range(6) for row in quadrats])
    for name, to in {"images": "wings/images", "wing-patterns/images": "wings/images", "train.csv": "quadrats/train.csv"}.items():
        (folder / name).symlink_to(folder / to)
    for own in (PROJECT / "docs" / "examples").glob("*.yaml"):
        shutil.copy2(own, folder)
    for years, place in itertools.product(range(6), (folder, folder / "quadrats")):
        (place / f"train{years}").symlink_to(folder / "quadrats" / "train")
    return folder


def later(row: dict[str, str], years: int) -> dict[str, str]:
    """A quadrat some years later, for there to be as many days as folds need."""
    year, _, day = row["Sampling_Date"].partition("/")
    image = row["image_path"].replace("train/", f"train{years}/")
    return row | {"sample_id": f"{years}{row['sample_id']}", "image_path": image, "Sampling_Date": f"{int(year) + years}/{day}"}


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.jobs
@pytest.mark.parametrize(
    "line", [line for line in EACH if line.command in RUN and ".yaml" in said(line) and line.words[0] not in DRAFTED], ids=said
)
def test_what_a_command_line_would_do_can_be_done(
    line: Line, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("CARABID_ROOT", str(desk))
    dry = ["--dry-run"] if line.command == "submit" and "--dry-run" not in line.words else []
    app([line.command, *line.words, *dry], standalone_mode=False)
    assert capsys.readouterr().out


# ---------------------------------------------------------------- keys
COMING = PROJECT / "docs" / "coming-from.md"
CONFIG = re.compile(r"configs/(?!cluster)\S+?\.yaml")
OVERRIDES = re.compile(r"[a-z_]+(?:\.[a-z_0-9]+)*=\S+(?: [a-z_]+(?:\.[a-z_0-9]+)*=\S+)*")


def keys_of(section: str) -> Iterator[tuple[str, str]]:
    """Of a section's tables what stands for another system's keys, and the configuration that it is of: the row's, else the first
    one that the section names."""
    first = CONFIG.findall(section)[:1]
    for theirs, ours, differs in re.findall(r"^\|(.*?)\|(.*?)\|(.*?)\|$", section, re.M):
        named = CONFIG.findall(theirs + ours + differs) or first
        yield from ((named[0], span) for span in BACKTICKS.findall(ours) if OVERRIDES.fullmatch(span) and named)


KEYS = list(dict.fromkeys(pair for section in re.split(r"^## ", COMING.read_text(), flags=re.M) for pair in keys_of(section)))


def test_there_are_keys_to_hold() -> None:
    assert len(KEYS) >= 70


@pytest.mark.parametrize(("config", "overrides"), KEYS, ids=str)
def test_what_stands_for_a_key_of_another_system_can_be_said(config: str, overrides: str) -> None:
    assert load_experiment(PROJECT / config, shlex.split(overrides)).trials


GUIDE = (PROJECT / "docs" / "finetune-bioclip.md").read_text()


@pytest.mark.parametrize("line", re.findall(r"`((?:lora|finetune)\.yaml [^`]+=[^`]+)`", GUIDE))
def test_a_way_that_the_guide_tells_the_needs_of_is_a_configuration(line: str) -> None:
    config, *overrides = line.split()
    assert load_experiment(PROJECT / "configs/species" / config, ("data.source=photos", *overrides)).trials


# ---------------------------------------------------------------- the tutorial
TUTORIAL = (PROJECT / "docs" / "tutorial.md").read_text()


@pytest.mark.long
def test_the_tutorial_is_walked_from_its_first_command_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With fewer photographs, and but for what needs a Hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path))
    for own in (PROJECT / "docs" / "examples").glob("wings*.yaml"):
        shutil.copy2(own, tmp_path)
    lines = [line for line in lines_of(TUTORIAL) if not line.is_mention and "bioclip" not in said(line)]
    for line in lines:
        app([line.command, *(at_hand(word, tmp_path) for word in line.words)], standalone_mode=False)
    assert len(lines) >= 13 and (tmp_path / "wings.html").is_file()
    assert "hybrid_stat=non-hybrid=" in capfd.readouterr().out


def at_hand(word: str, folder: Path) -> str:
    """A word of the tutorial as it is typed in this folder: some trial's name for `<trial>`, a tenth of the photographs."""
    place = folder / word.partition("/<trial>")[0]
    return str(next(place.glob("*seed=*"))) if "<trial>" in word else {"0.4": "0.05"}.get(word, word)
