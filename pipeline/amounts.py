"""Amounts as text and as numbers: Slurm's memory (`32G`) and walltime (`1-12:00:00`), bytes for people. Loads no torch."""

import re
from math import ceil

MEMORY_UNITS = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
# minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds
TIME_FORMS = (
    r"(?P<m>\d+)",
    r"(?P<m>\d+):(?P<s>\d+)",
    r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)",
    r"(?P<d>\d+)-(?P<h>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?",
)
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_memory(text: str) -> int:
    """`32G`, `512M`, `4000` (megabytes) → MiB, rounded up; 0 is all of a node's. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([KMGT])?B?", text.strip().upper())  # (more are infinite)
    if not found:
        raise ValueError(f"{text!r:.60} is no amount of memory: write it as Slurm does, such as 32G or 4000M")
    return ceil(float(found[1]) * MEMORY_UNITS[found[2] or "M"])


def format_memory(mebibytes: int) -> str:
    """MiB → `32G` where it is a whole number of GiB, else `1500M`."""
    if mebibytes == 0:
        return "0"
    return f"{mebibytes // 1024}G" if mebibytes % 1024 == 0 else f"{mebibytes}M"


def format_bytes(n: float) -> str:
    """Bytes as a person reads them: `2.1 GB`, `3.4 MB`."""
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def parse_time(text: str) -> int:
    """A walltime as Slurm writes it → seconds. Raises ValueError for anything else."""
    for form in TIME_FORMS:
        if found := re.fullmatch(form, text.strip()):
            total = sum(int(value) * SECONDS[unit] for unit, value in found.groupdict().items() if value)
            if total:
                return total
    raise ValueError(f"{text!r} is no walltime: write minutes, HH:MM:SS or D-HH:MM:SS")


def format_time(seconds: int) -> str:
    """Seconds → `04:00:00`, or `1-12:00:00` from a day on."""
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def parse_factor(text: str) -> float:
    """`2x` or `1.5x` → 2.0, 1.5. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)x", text.strip())
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is no factor: write it as 2x")
    return float(found[1])


def scale_memory(text: str, change: str) -> str:
    """`change` is a factor (`2x`) of the amount in `text`, or a new amount (`64G`)."""
    return format_memory(ceil(parse_memory(text) * parse_factor(change)) if change.endswith("x") else parse_memory(change))


def scale_time(text: str, change: str) -> str:
    """`change` is a factor (`2x`) of the walltime in `text`, or a new walltime (`08:00:00`)."""
    return format_time(ceil(parse_time(text) * parse_factor(change)) if change.endswith("x") else parse_time(change))
