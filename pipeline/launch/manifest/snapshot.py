"""The code that ran is the code that was submitted: a copy of the package, which a submission's jobs run. Loads no torch.

Snapshots lie under the experiment by the hash of their files and of where these came from (commit, changes), so that
submissions of the same code share one, and each says rightly which commit it is of. A lab's own files are copied into `own/`.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.config.own import COPIES, content, copy_name
from pipeline.disk.layout import PROJECT, ExperimentDir
from pipeline.disk.provenance import CODE_RECORD, code_version
from pipeline.disk.writing import atomic_folder

SOURCES = (".py", ".j2", ".css", ".js")
"""What the package consists of: code, and what the page of results is made by. Not the configurations that it brings along."""


def take_snapshot(experiment: ExperimentDir, tasks: Iterable[str] = ()) -> Path:
    """The folder of the snapshot of the running code, and of these tasks that are files, made if it is not there."""
    record = (json.dumps(code_version(), indent=1) + "\n").encode()
    sources = sorted(path for path in (PROJECT / "pipeline").rglob("*") if path.suffix in SOURCES and path.is_file())
    files = {CODE_RECORD: record} | {str(path.relative_to(PROJECT)): path.read_bytes() for path in sources}
    files |= {f"{COPIES.name}/{copy_name(task)}": content(task) for task in sorted(set(tasks)) if task.endswith(".py")}
    hashes = [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in files.items()]
    folder = experiment.code(hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12])
    if not folder.exists():
        try:
            with atomic_folder(folder) as temporary:
                for name, data in files.items():
                    (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                    (temporary / name).write_bytes(data)
        except OSError:
            if not folder.exists():  # (another submission may have made it meanwhile)
                raise
    return folder
