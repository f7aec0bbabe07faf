"""An environment as the platform's: of what is installed here, only the whitelist's packages and what they depend on.

A virtual environment whose packages are links, made in a moment. What a submission must not need (this package, PEFT, …)
cannot be imported in it. Processes in it get few of this one's variables: no token, no PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import venv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from pipeline.errors import UserError, WorkError
from pipeline.export.whitelist import WHITELIST

NEEDED = ("pandas", "PIL")
"""What ingestion.py itself imports."""
FORBIDDEN = "pipeline"
PASSED_ON = (
    "PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "XDG_CACHE_HOME", "TORCH_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
)  # fmt: skip
"""The variables that processes keep: where programs, caches and the network are."""
SET = {
    "PYTHONNOUSERSITE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # (a submission's folder stays as it is)
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # (a token that lies in the cache would open what the platform cannot read)
}
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Seen:
    """What a look at an environment found: versions, which modules can be imported, why weights do not load."""

    python: str
    packages: dict[str, str]
    modules: list[str]
    unreadable: dict[str, str]


@contextmanager
def environment(chosen: Path | None) -> Iterator[Path]:
    """A clean environment's interpreter: of one that is made, and removed at the end, or of one's own.

    Raises UserError if one's own lacks what the protocol needs, or has this package.
    """
    if chosen:
        if not os.access(chosen, os.X_OK) or chosen.is_dir():
            raise UserError(f"--python {chosen}: there is no program of that name.")
        python = chosen.absolute()  # (not resolved: a virtual environment's interpreter is a link out of it)
        refuse_unfit(python)
        yield python
        return
    with tempfile.TemporaryDirectory(prefix="carabid-clean-") as folder:
        python = make_environment(Path(folder) / "venv")
        refuse_unfit(python)
        yield python


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with links to the whitelist's packages that are installed here; its interpreter.

    Raises WorkError if a package does not say which files are its own.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in closure(WHITELIST):
        for name in _own_entries(package):
            link = site / name
            if not link.is_symlink():  # (several packages share a namespace, as NVIDIA's do)
                link.symlink_to(Path(str(package.locate_file(name))).resolve())
    return folder / "bin" / "python"


def refuse_unfit(python: Path) -> None:
    """Raise UserError for an environment that has this package, or lacks what ingestion.py imports."""
    modules = look(python, modules=(*NEEDED, FORBIDDEN)).modules
    if FORBIDDEN in modules:
        raise UserError(f"{python} can import `{FORBIDDEN}`: choose an environment that Carabid is not installed in.")
    if missing := [name for name in NEEDED if name not in modules]:
        raise UserError(f"{python} cannot import {' and '.join(missing)}, which the platform's side needs.")


def look(python: Path, packages: Iterable[str] = (), modules: Iterable[str] = (), weights: Iterable[Path] = ()) -> Seen:
    """Ask an interpreter what is in its environment. Raises WorkError if it cannot answer."""
    question = {"packages": [*packages], "modules": [*modules], "weights": [str(path) for path in weights]}
    script = Path(__file__).with_name("probe.py")
    done = run(python, ["-I", str(script)], Path(tempfile.gettempdir()), json.dumps(question))
    if done.returncode:
        raise WorkError(f"{python} does not work (status {done.returncode}):\n{last_lines(done.stderr)}")
    return Seen(**json.loads(done.stdout))


def run(
    python: Path, arguments: Sequence[str], folder: Path, given: str = "", gpu: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run an interpreter in a folder, with a small environment. GPUs are hidden, as the platform may have none, or as here."""
    passed_on = (*PASSED_ON, GPUS) if gpu else PASSED_ON
    kept = {name: os.environ[name] for name in passed_on if name in os.environ} | ({} if gpu else {GPUS: ""})
    return subprocess.run(
        [str(python), *arguments], cwd=folder, env=kept | SET, input=given, capture_output=True, text=True, errors="replace"
    )


def last_lines(text: str) -> str:
    """The end of what a process said."""
    return "\n".join(text.rstrip().splitlines()[-12:])


def closure(names: Iterable[str]) -> list[Distribution]:
    """The distributions of these names that are installed, and of what they depend on."""
    found: dict[tuple[str, str], Distribution] = {}
    waiting = [(name, "") for name in names]
    while waiting:
        name, extra = waiting.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if (package.name, extra) not in found:
            found[package.name, extra] = package
            waiting += _dependencies(package, extra)
    return [*{package.name: package for package in found.values()}.values()]


def _dependencies(package: Distribution, extra: str) -> Iterator[tuple[str, str]]:
    """What a distribution (extra ""), or one of its extras, depends on, as (name, extra).

    Of the markers only the extra is looked at: what another system or Python would need is not installed here.
    """
    for text in package.requires or []:
        requirement, _, marker = text.partition(";")
        wanted = re.findall(r"""extra\s*==\s*["']([^"']+)["']""", marker) or [""]
        parsed = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^]]*)\])?", requirement)
        if extra in wanted and parsed:
            yield parsed[1], ""
            yield from ((parsed[1], name.strip()) for name in (parsed[2] or "").split(",") if name.strip())


def _own_entries(package: Distribution) -> set[str]:
    """The files and folders of a distribution in its site-packages. A .pth may do anything, and is left out."""
    if package.files is None:
        raise WorkError(
            f"{package.name} does not say which files are its own, so that no clean environment can be made of this one: "
            "make one with the whitelist's packages, and name its interpreter by --python."
        )
    names = {file.parts[0] for file in package.files}
    return {name for name in names if name not in ("..", "__pycache__") and not name.endswith(".pth")}
