"""What lies in a submission: the modules that it imports, weights, requirements, and what is wrong with them. Runs nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import WorkError
from pipeline.export.whitelist import FILE, IMPORTS, Requirement, parse_requirements

ENTRY = "model.py"
WEIGHTS = (".pt", ".pth", ".bin")
TORCH_BEGINS = (b"PK", b"\x80")
"""How a file of torch.save begins (a zip archive, or a pickle); a .bin may be something else."""


@dataclass
class Contents:
    """A submission's files, and what can be told from them alone."""

    folder: Path
    imports: list[tuple[str, str]] = field(default_factory=list)
    """Each import of what is neither Python's nor the folder's own, as (`file:line`, top-level module)."""
    at_once: set[str] = field(default_factory=set)
    """Those that are imported with their file, and not by a function that may never be called."""
    weights: list[Path] = field(default_factory=list)
    """Files that torch would load."""
    requirements: list[Requirement] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_contents(folder: Path) -> Contents:
    """Look at a submission's files, without running any."""
    contents = Contents(folder)
    if not (folder / ENTRY).is_file():
        contents.faults.append(_misplaced(folder))
        return contents  # (what is in another folder's place looks wrong, whatever it is)
    _read_requirements(contents)
    own = {path.stem for path in folder.glob("*.py")}  # at the root, which the platform puts on the path
    own |= {path.name for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    for path in sorted(folder.rglob("*.py")):
        if not path.name.startswith("."):  # (a Mac packs ._model.py beside model.py, which is no Python)
            _read_imports(path, own, contents)
    contents.weights = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS and _is_torch(path)]
    return contents


def _read_requirements(contents: Contents) -> None:
    path = contents.folder / FILE
    try:
        contents.requirements = parse_requirements(path.read_bytes().decode()) if path.exists() else []
    except UnicodeDecodeError:
        contents.faults.append(f"{FILE}: is not UTF-8 text")
    except WorkError as error:
        contents.faults.append(f"{error}")


def _misplaced(folder: Path) -> str:
    """What is wrong where model.py is not at the root."""
    inner = sorted(path.parent.relative_to(folder) for path in folder.rglob(ENTRY))
    if inner:
        return f"{ENTRY} lies in {inner[0]}/: the platform looks at the root, so pack what is in that folder, not the folder"
    return f"{ENTRY} is missing at the root: the platform runs `from model import Model`"


def _read_imports(path: Path, own: set[str], contents: Contents) -> None:
    """Add a file's imports, inside functions too, and what is wrong with them."""
    file = path.relative_to(contents.folder)
    try:
        tree = ast.parse(path.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        contents.faults.append(f"{file}:{getattr(error, 'lineno', None) or 1}: is not Python: {error}")
        return
    contents.at_once |= {name for node in tree.body for _, name in _imported(node, deep=False)}
    taken = sys.stdlib_module_names | set(IMPORTS.values())
    for line, name in _imported(tree):
        if name in own & taken:
            contents.faults.append(f"{file}:{line}: `{name}` is not the folder's, but an installed module: rename the file")
        elif name not in own | sys.stdlib_module_names:
            contents.imports.append((f"{file}:{line}", name))


def _imported(tree: ast.AST, deep: bool = True) -> Iterator[tuple[int, str]]:
    """Line and top-level module of each import; not `deep`: of this very statement."""
    for node in ast.walk(tree) if deep else (tree,):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]


def _is_torch(path: Path) -> bool:
    """Whether torch would load a file with the ending of weights."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return path.suffix != ".bin" or stream.read(2).startswith(TORCH_BEGINS)
