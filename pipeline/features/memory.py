"""How much memory this process may still take: the machine's, within its control groups, where Slurm's limit is."""

import os
from pathlib import Path

SHARE = 0.6
"""Part of the free memory that features may take; the rest is for the model and what it computes."""
# Version 2 and version 1: files with the limit and the use, and what of the use is file cache, which gives way.
FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def free_host_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes."""
    rooms = [_room_in(folder) for folder in _control_groups(proc / "self/cgroup", groups)]
    return max(0, min([_of_machine(proc / "meminfo"), *(room for room in rooms if room is not None)]))


def _of_machine(meminfo: Path) -> int:
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _control_groups(listing: Path, root: Path) -> list[Path]:
    """Folders of the memory control groups this process is in, each with all that contain it."""
    try:
        entries = [line.split(":", 2) for line in listing.read_text().splitlines()]
    except OSError:
        return []
    folders = []
    for _, controllers, path in entries:
        if controllers == "" or "memory" in controllers.split(","):
            base = root / "memory" if controllers else root
            inner = base / path.lstrip("/")
            folders += [inner, *(folder for folder in inner.parents if folder.is_relative_to(base))]
    return folders


def _room_in(folder: Path) -> int | None:
    """What a control group still allows; None if it sets no limit."""
    for limit, usage, cached in FILES:
        try:
            allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return None if allowed == "max" else int(allowed) - used + sum(int(stat.get(name, 0)) for name in cached)
        except (OSError, ValueError):
            continue
    return None
