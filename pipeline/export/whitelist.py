"""What a submission's requirements.txt may say: the platform's list of packages, letter for letter, and its lines' form."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.errors import WorkError

WHITELIST = (
    "pytorch", "tensorflow", "numpy", "scikit-learn", "keras", "torch", "open-clip-torch", "torchvision", "transformers",
    "pandas", "Pillow", "scipy", "tqdm", "pyarrow", "duckdb", "matplotlib", "xgboost", "nflows", "lightgbm", "seaborn",
    "iminuit", "timm", "torchaudio", "catboost", "plotly", "opencv-python-headless", "albumentations",
)  # fmt: skip
OTHER_IMPORTS = {
    "pytorch": "torch",
    "scikit-learn": "sklearn",
    "open-clip-torch": "open_clip",
    "Pillow": "PIL",
    "opencv-python-headless": "cv2",
}
IMPORTS = {name: OTHER_IMPORTS.get(name, name) for name in WHITELIST}
"""Under which name each package is imported."""
FILE = "requirements.txt"


@dataclass(frozen=True)
class Requirement:
    """One line: a package, and its version where the line pins one."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.name}=={self.version}" if self.version else self.name


def parse_requirements(text: str) -> list[Requirement]:
    """The lines of a requirements.txt, in order. Raises WorkError that names every line the platform would stop at."""
    lines = text.split("\n")  # (splitlines takes a form feed or a lone \r for an end of line: pip's caller may not)
    if lines[-1] == "":
        lines.pop()
    faults = [f"{FILE}:{number}: {fault}" for number, line in enumerate(lines, 1) if (fault := _fault(line))]
    if faults:
        raise WorkError("\n".join(faults))
    return [Requirement(name, version or None) for name, _, version in (line.partition("==") for line in lines)]


def _fault(line: str) -> str | None:
    """What is wrong with a line, and what to do."""
    if not line.strip():
        return "an empty line, which ends the platform's run: remove it"
    if "#" in line:
        return "a comment, which ends the platform's run: remove it"
    if line.endswith("\r"):
        return "the line ends as on Windows (\\r\\n): save the file with Unix line ends"
    name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
    if name not in WHITELIST:
        meant = [allowed for allowed in WHITELIST if _normal(allowed) == _normal(name)]
        if meant:
            return f"`{name}` is compared letter for letter: write `{meant[0]}`"
        what = f"`{name or line}` is not on the platform's list: do without it, or copy what you need of its code"
        return f"{what}. Allowed: {', '.join(WHITELIST)}"
    if not re.fullmatch(r"(==[0-9][A-Za-z0-9.+!]*)?", line.removeprefix(name)):
        return f"`{line}`: the platform takes `{name}`, or `{name}==` and one exact version, and nothing else on a line"
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
