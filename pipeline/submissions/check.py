"""Whether a submission will get through: its files looked at, then the platform's protocol run on events that are hard.

The protocol runs in processes that cannot import this package (`clean`), on inputs that are the same every time (`inputs`),
twice: the second time with specimens and events in another order, which must not matter.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic

from pipeline.amounts import format_bytes
from pipeline.errors import UserError, WorkError
from pipeline.progress import say
from pipeline.submissions.clean import FORBIDDEN, Seen, environment, last_lines, look, run
from pipeline.submissions.contents import Contents, read_contents
from pipeline.submissions.inputs import Row, make_inputs, modes, shuffled, write_table
from pipeline.submissions.whitelist import FILE, IMPORTS, WHITELIST, Requirement

OURS = ("carabid", FORBIDDEN)
ALWAYS_THERE = {"pandas", "PIL", "numpy"}
"""What the platform's own side imports."""
SAME = 1e-4
"""How far predictions may differ with the order: one step of what is written down."""
LARGEST = 500
"""Specimens of the largest event."""

Predictions = dict[tuple[str, str, str], float]


def check(submission: Path, python: Path | None = None, largest: int = LARGEST, gpu: bool = False) -> list[str]:
    """Check a submission, a folder or a zip; lines that say what was done and found.

    `python` is the interpreter of an environment of one's own to run it in; `largest` the specimens of the largest event;
    `gpu` lets it see this machine's GPUs. Raises WorkError that says what is wrong with the submission, and UserError if there
    is none, or for an environment that is of no use.
    """
    with _unpacked(submission) as folder, environment(python) as interpreter:
        contents = read_contents(folder)
        seen = look(interpreter, WHITELIST, {name for _, name in contents.imports}, contents.weights)
        faults = [*contents.faults, *_module_faults(contents, seen), *_weight_faults(folder, seen)]
        if faults:
            raise WorkError("\n".join([f"{submission} would not run on the platform:", *faults]))
        notes = list(_notes(contents, seen))
        try:
            ran = _run_protocol(partial(_predict, interpreter, folder, gpu), largest)
        except WorkError as error:
            raise WorkError("\n".join([f"{submission} does not get through: {error}", *notes])) from None
        return [_summary(contents), f"environment: {_versions(seen)}", *ran, *notes]


@contextmanager
def _unpacked(submission: Path) -> Iterator[Path]:
    """The submission's folder: itself, or a temporary one with what a zip holds.

    Raises UserError if it is neither, WorkError for a zip that cannot be unpacked.
    """
    if submission.is_dir():
        yield submission.resolve()
        return
    if not zipfile.is_zipfile(submission):
        raise UserError(f"{submission}: there is no folder or zip file of that name.")
    with tempfile.TemporaryDirectory(prefix="carabid-submission-") as folder:
        try:
            with zipfile.ZipFile(submission) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # (the last for a password)
            raise WorkError(f"{submission} cannot be unpacked: {error}") from None
        yield Path(folder).resolve()


# ---------------------------------------------------------------- what is wrong, and what is worth knowing
def _module_faults(contents: Contents, seen: Seen) -> Iterator[str]:
    """Imports that the platform cannot satisfy."""
    for place, name in contents.imports:
        if name in OURS:
            yield f"{place}: imports `{name}`, which the platform does not have: copy what is needed of it"
        elif name not in IMPORTS.values() and name not in seen.modules:
            yield f"{place}: imports `{name}`, which no package on the platform's list has: copy what is needed of it"


def _weight_faults(folder: Path, seen: Seen) -> Iterator[str]:
    for path, reason in seen.unreadable.items():
        yield (
            f"{Path(path).relative_to(folder)}: torch.load(…, weights_only=True) fails, the only way to load it that "
            f"runs no code: save a dict of tensors, numbers and strings. torch says: {reason}"
        )


def _notes(contents: Contents, seen: Seen) -> Iterator[str]:
    """What may be otherwise on the platform than it was here."""
    for each in contents.requirements:
        here = seen.packages.get(each.name)
        if here is None or _another_version(each, here):
            yield f"note: {FILE} asks for {each}, and the check ran with {here or 'none'}: --python names another environment"
    listed = {IMPORTS[each.name] for each in contents.requirements} | ALWAYS_THERE
    used = {name for _, name in contents.imports}
    for name in sorted(contents.at_once & set(IMPORTS.values()) - listed):
        yield f"note: `{name}` is imported and {FILE} does not list it: the platform may not have it"
    for name in sorted(used - set(IMPORTS.values())):
        yield f"note: `{name}` is not on the platform's list: it is there only as long as another package brings it along"


def _another_version(requirement: Requirement, here: str) -> bool:
    """Whether a pin is for another version; one without a local part (`+cu130`) is for all of that version."""
    pin = requirement.version
    return pin is not None and pin not in (here, here.partition("+")[0])


def _summary(contents: Contents) -> str:
    files = [path for path in contents.folder.rglob("*") if path.is_file()]
    size = format_bytes(sum(path.stat().st_size for path in files))
    asked = ", ".join(map(str, contents.requirements)) or "nothing"
    return f"submission: {len(files)} files, {size}; {FILE} asks for {asked}"


def _versions(seen: Seen) -> str:
    return ", ".join([f"Python {seen.python}", *(f"{name} {version}" for name, version in seen.packages.items())])


# ---------------------------------------------------------------- the protocol
def _run_protocol(predict: Callable[[Path, str], Predictions], largest: int) -> list[str]:
    """Run a submission on hard events, in two orders. Raises WorkError if it fails or the order matters."""
    with tempfile.TemporaryDirectory(prefix="carabid-check-") as place:
        work = Path(place)
        rows = make_inputs(work / "input", largest)
        events = len({row[-1] for row in rows})
        say(f"predicting {events} events with {len(rows)} specimens, in two orders")
        began = monotonic()
        first = predict(work, "first")
        seconds = monotonic() - began
        write_table(work / "input", shuffled(rows))
        second = predict(work, "second")
        if _differing(first, second):
            write_table(work / "input", rows)
            _explain_difference(rows, first, second, predict(work, "third"))
        seen = ", ".join(modes(work / "input"))
    return [
        f"protocol: {events} events, {len(rows)} specimens (the largest event has {largest}), {seconds:.1f} s; "
        f"images of modes {seen}; names and domains known, unseen, and no name",
        "the same predictions with specimens and events in another order",
    ]


def _predict(python: Path, folder: Path, gpu: bool, work: Path, name: str) -> Predictions:
    """Run the platform's side on work/input; what it wrote. Raises WorkError with what it says is wrong."""
    output, program, elsewhere = work / name, work / f"{name}-program", work / f"{name}-cwd"
    for made in (output, program, elsewhere):
        made.mkdir()
    script = shutil.copy(Path(__file__).with_name("ingestion.py"), program)  # (beside it lies this package)
    done = run(python, [str(script), *map(str, (work / "input", output, program, folder))], elsewhere, gpu=gpu)
    if (output / "failure.txt").exists():
        raise WorkError((output / "failure.txt").read_text(encoding="utf-8").rstrip())
    if done.returncode or not (output / "predictions.csv").exists():
        raise WorkError(f"its process ended with status {done.returncode}:\n{last_lines(done.stderr)}")
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    return {(each["eventID"], each["variable"], each["parameter"]): float(each["prediction"]) for each in lines}


def _differing(one: Predictions, other: Predictions) -> list[tuple[str, str, str]]:
    """Where two predictions differ, the farthest apart first. (A hair above one step: they are decimals.)"""
    apart = {key: abs(one[key] - other[key]) for key in one}
    return sorted((key for key in one if apart[key] > SAME * 1.001), key=lambda key: -apart[key])


def _explain_difference(rows: Sequence[Row], first: Predictions, second: Predictions, again: Predictions) -> None:
    """Raise WorkError that says whether chance or the order made a difference."""
    by_chance = _differing(first, again)
    key = (by_chance or _differing(first, second))[0]
    event, target, parameter = key
    many = Counter(str(row[-1]) for row in rows)[event]
    what = f"event {event} ({many} specimens): its {parameter} of {target} is {first[key]:.4f}"
    if by_chance:
        raise WorkError(
            f"{what} and, of the same input again, {again[key]:.4f}: draw nothing at random in predict, "
            "and put the model into eval mode"
        )
    raise WorkError(
        f"{what} and, with specimens and events in another order, {second[key]:.4f}: an event's prediction must depend "
        "on neither"
    )
