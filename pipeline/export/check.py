"""Whether a submission will get through: its files looked at, then the platform's protocol run on groups that are hard.

The challenge's protocol (`beetles_protocol`, `butterflies_protocol`) runs in processes that cannot import this package
(`clean`), on inputs that are the same every time (`inputs`).
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.amounts import format_bytes
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import read_record
from pipeline.errors import UserError, WorkError
from pipeline.export import beetles_protocol, butterflies_protocol, seal
from pipeline.export.clean import FORBIDDEN, Seen, environment, last_lines, look, run
from pipeline.export.contents import Contents, read_contents
from pipeline.export.whitelist import FILE, IMPORTS, WHITELIST

OURS = ("carabid", FORBIDDEN)
ALWAYS_THERE = {"pandas", "PIL", "numpy"}
"""What the platform's own side imports."""
CHALLENGES = {"beetles": beetles_protocol, "butterflies": butterflies_protocol}
LARGEST = beetles_protocol.LARGEST


def check(
    submission: Path, python: Path | None = None, largest: int = LARGEST, gpu: bool = False, challenge: str | None = None
) -> list[str]:
    """Check a submission, a folder or a zip; lines that say what was done and found.

    `python` is the interpreter of an environment of one's own to run it in; `largest` the images of the largest group;
    `gpu` lets it see this machine's GPUs; `challenge` (beetles, butterflies) is by default what submission.json says, else
    beetles. Raises WorkError that says what is wrong with the submission, and UserError if there is none, for a challenge that
    there is not, and for an environment that is of no use.
    """
    with _unpacked(submission) as folder, environment(python) as interpreter:
        protocol = _protocol(folder, challenge)
        contents = read_contents(folder)
        seen = look(interpreter, WHITELIST, {name for _, name in contents.imports}, contents.weights)
        faults = [*contents.faults, *_module_faults(contents, seen), *_weight_faults(folder, seen)]
        if faults:
            raise WorkError("\n".join([f"{submission} would not run on the platform:", *faults]))
        notes = list(_notes(contents, seen))
        try:
            ran = protocol.run_protocol(partial(_run, interpreter, folder, gpu, protocol.SCRIPT), largest)
        except WorkError as error:
            raise WorkError("\n".join([f"{submission} does not get through: {error}", *notes])) from None
        versions = ", ".join([f"Python {seen.python}", *(f"{name} {version}" for name, version in seen.packages.items())])
        return [_summary(contents), f"environment: {versions}", *ran, *notes]


@contextmanager
def _unpacked(submission: Path) -> Iterator[Path]:
    """The submission's folder: itself, or a temporary one with what a zip holds.

    Raises UserError if it is neither, WorkError for a zip that cannot be unpacked, and for a file that is not as it was exported.
    """
    if submission.is_dir():
        _refuse_damaged(submission, submission)
        yield submission.resolve()
        return
    if not submission.is_file():
        raise UserError(f"{submission}: there is no folder or zip file of that name.")
    if not zipfile.is_zipfile(submission):
        raise Damaged(f"damaged: {submission}: it is no zip file, or only a part of one. Copy or export it again.")
    with tempfile.TemporaryDirectory(prefix="carabid-submission-") as folder:
        with reading(submission, "It cannot be unpacked."), zipfile.ZipFile(submission) as archive:
            archive.extractall(folder)
        _refuse_damaged(submission, Path(folder))
        yield Path(folder).resolve()


def _refuse_damaged(submission: Path, folder: Path) -> None:
    """Raises WorkError if `carabid export` has written it, and a file is not what it was."""
    try:
        if (folder / seal.FILE).is_file():
            seal.opened(folder)
    except ValueError as error:
        raise WorkError(f"{submission}: {error}.") from None


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
        # (A pin without a local part, as `+cu130`, is for all of that version.)
        if here is None or each.version not in (None, here, here.partition("+")[0]):
            yield f"note: {FILE} asks for {each}, and the check ran with {here or 'none'}: --python names another environment"
    listed = {IMPORTS[each.name] for each in contents.requirements} | ALWAYS_THERE
    used = {name for _, name in contents.imports}
    for name in sorted(contents.at_once & set(IMPORTS.values()) - listed):
        yield f"note: `{name}` is imported and {FILE} does not list it: the platform may not have it"
    for name in sorted(used - set(IMPORTS.values())):
        yield f"note: `{name}` is not on the platform's list: it is there only as long as another package brings it along"


def _summary(contents: Contents) -> str:
    files = [path for path in contents.folder.rglob("*") if path.is_file()]
    size = format_bytes(sum(path.stat().st_size for path in files))
    asked = ", ".join(map(str, contents.requirements)) or "nothing"
    return f"submission: {len(files)} files, {size}; {FILE} asks for {asked}"


# ---------------------------------------------------------------- the protocol
def _protocol(folder: Path, challenge: str | None) -> Any:
    """The module of a challenge's protocol. Raises UserError for one that there is not."""
    # What somebody wrote does not say which it is for; the beetles' is the newer challenge.
    name = challenge or str(read_record(folder / "submission.json").get("challenge", "beetles"))
    if name not in CHALLENGES:
        raise UserError(f"--challenge {name}: choose {' or '.join(CHALLENGES)}")
    return CHALLENGES[name]


def _run(python: Path, folder: Path, gpu: bool, script: str, work: Path, name: str) -> Path:
    """Run the platform's side on work/input; where its output lies. Raises WorkError with what it says is wrong."""
    output, program, elsewhere = work / name, work / f"{name}-program", work / f"{name}-cwd"
    for made in (output, program, elsewhere):
        made.mkdir()
    for file in (script, "platform_side.py"):
        shutil.copy(Path(__file__).with_name(file), program)  # (beside them lies this package)
    done = run(python, [str(program / script), *map(str, (work / "input", output, program, folder))], elsewhere, gpu=gpu)
    if (output / "failure.txt").exists():
        raise WorkError((output / "failure.txt").read_text(encoding="utf-8").rstrip())
    if done.returncode or not any(output.glob("predictions.*")):
        raise WorkError(f"its process ended with status {done.returncode}:\n{last_lines(done.stderr)}")
    return output
