"""How time and memory grow with the number of images, trials, classes, and with the gallery: nothing above linear.

    python -m benchmarks.growth [--all]

Each size of each kind in a process of its own: CPU seconds of each step, and by how much its memory grew. The exponent is the
slope of log seconds over log n between the last two sizes: 1 is linear. --all takes the largest sizes too (a million images and
vectors, a hundred thousand classes), prints the table as Markdown, and draws docs/growth/<kind>.svg.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure, seconds, show
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import write_text

THREADS = 1
SIZES = {
    "images": (10_000, 100_000, 1_000_000),
    "table": (10_000, 100_000, 1_000_000),
    "trials": (1_000, 10_000, 100_000),
    "classes": (1_000, 10_000, 100_000),
    "gallery": (10_000, 100_000, 1_000_000),
}
"""The last is left to --all, but of trials."""
SHORT = {"images": (64, 128), "table": (64, 128), "trials": (10, 40), "classes": (8, 16), "gallery": (50, 100)}
GOALS = {("trials", "plan"): 5.0, ("trials", "submit --dry-run"): 8.0}
"""CPU seconds of the whole command at the largest size."""
STEEPEST = 1.1
NOISE_S, NOISE_MB = 0.2, 50.0
"""What takes less is not told from noise."""
WIDTH = 32
Steps = dict[str, float]


# ---------------------------------------------------------------- one size, in a process of its own
class Watch:
    """CPU seconds of steps."""

    def __init__(self) -> None:
        self.steps: Steps = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Any:
        began = time.process_time()
        yield
        self.steps[name] = time.process_time() - began


def images(n: int, folder: Path, watch: Watch) -> None:
    """A store of n images as extraction leaves it, and what training and evaluation make of it."""
    import numpy as np
    import torch

    from pipeline.features.bank import make_bank
    from pipeline.features.store import load_store
    from pipeline.tasks import load_task
    from pipeline.tasks.base import Training

    directory = _write_store(n, folder)
    with watch.step("open a store"):
        store = load_store(directory)
        assert not store.missing() and not store.bad
    with watch.step("bank"):
        bank = make_bank(store, range(n), torch.device("cpu"), "host")
    with watch.step("batches of an epoch"):
        for some in torch.randperm(n).split(64):
            bank.gather(some)
    rng, task = np.random.default_rng(0), load_task("regress")
    table, truth = _table(n), rng.normal(size=(n, 1))
    from pipeline.metrics.groups import Prediction

    said = Prediction.of(truth + rng.normal(size=(n, 1)))
    known = Training(frozenset(["a"]), {"target": 0.0}, {"target": 1.0})
    with watch.step("figures of an evaluation"):
        predictions = task.predictions(table, truth, ["target"], said)
        known = Training(known.domains, known.means, known.sds, task.calibrate(predictions, known, "moments"))
        task.report(task.forecast(predictions, known), known)


def _write_store(n: int, folder: Path, width: int = WIDTH) -> Any:
    import pandas as pd
    import torch

    from pipeline.disk.layout import StoreDir
    from pipeline.features.key import Ingredients
    from pipeline.features.store import FeatureStore

    made_of = Ingredients("data", "open_clip", "architecture", "weights", "transform", "pooled", 0, "bf16", 1024)
    store = FeatureStore(StoreDir(folder / made_of.key()), made_of, n)
    for number in range(store.n_shards):
        made = {"images": len(store.positions(number)), "seconds": 1.0, "device": "cpu"}
        store.write_shard(number, torch.randn(len(store.positions(number)), width).to(torch.bfloat16), {}, made)
    table = pd.DataFrame({"id": map(str, range(n)), "source_split": "train", "row": range(n)})
    store.write_manifest(table, ["0" * 64] * n, {})
    return store.dir


def _table(n: int) -> Any:
    import numpy as np
    import pandas as pd

    numbers = np.arange(n)
    columns = {"id": numbers.astype(str), "group": (numbers // 4).astype(str), "domain": "a", "species": None}
    return pd.DataFrame(columns | {"source_split": "test", "row": numbers, "split": "test", "site": None, "date": None})


def table(n: int, folder: Path, watch: Watch) -> None:
    """A CSV of n images: read, dealt to folds, planned with all that is looked at before."""
    import numpy as np

    from pipeline.experiments.reading import load_experiment
    from pipeline.launch.watching.plan import lines
    from pipeline.tasks import load_task

    names = [f"{i % 500}.jpg" for i in range(n)]
    heights = np.random.default_rng(0).normal(size=n // 4 + 1)
    rows = (f"{name},{i // 4},{heights[i // 4]:.4f}" for i, name in enumerate(names))
    (folder / "table.csv").write_text("\n".join(["file,plant,height", *rows]))
    (folder / "images").mkdir()
    for name in names[:500]:  # rows share them: files cost, and none is opened
        (folder / "images" / name).touch()
    data = {"source": str(folder / "table.csv"), "images": str(folder / "images"), "targets": ["height"]}
    data |= {"columns": {"image": "file", "group": "plant"}, "split": {"kind": "folds"}}
    paths = {"features": str(folder / "features"), "trained": str(folder / "trained")}
    (folder / "it.yaml").write_text(json.dumps({"task": "regress", "data": data, "paths": paths}))
    experiment = load_experiment(folder / "it.yaml")
    with watch.step("load and deal to folds"):
        load_task("regress").load(experiment.config.data)
    with watch.step("plan, tables looked at"):
        list(lines(experiment))


def trials(n: int, folder: Path, watch: Watch) -> None:
    """A grid of n trials, none of which has run: the whole commands, Python's start among them."""
    import numpy as np

    from pipeline.tasks import load_task

    load_task("beetles").generate(folder / "data", scale=0.02)
    seeds = 10 if n >= 1000 else 1
    rates = max(round(math.sqrt(n / seeds)), 1)
    shapes = {"optim.lr": rates, "optim.weight_decay": n // seeds // rates}
    grid = [f"{key}={','.join(f'{each:.9g}' for each in np.geomspace(1e-5, 1e-1, k))}" for key, k in shapes.items()]
    grid += [f"seed={','.join(map(str, range(seeds)))}", "optim.kind=adamw"]
    environment = os.environ | {"CARABID_ROOT": str(folder), "PATH": str(folder)}  # (no Slurm to be asked)
    for command in (["plan"], ["submit", "--dry-run"]):
        before = os.times()
        line = [sys.executable, "-m", "pipeline.cli", command[0], "configs/beetles/frozen.yaml", f"data.source={folder / 'data'}"]
        done = subprocess.run([*line, *grid, *command[1:]], cwd=PROJECT, env=environment, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        after = os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        watch.steps[" ".join(command)] = cpu


def classes(n: int, folder: Path, watch: Watch) -> None:
    """Figures of 256 images among n classes: of probabilities, and of embeddings that are compared with the classes'."""
    import numpy as np

    from pipeline.metrics.groups import Prediction
    from pipeline.metrics.ranks import probabilities
    from pipeline.tasks import load_task
    from pipeline.tasks.base import Training

    rng, m = np.random.default_rng(0), 256
    labels, names = rng.integers(n, size=m), [f"species {i:06d}" for i in range(n)]
    p = rng.random((m, n), dtype="float32")
    p[np.arange(m), labels] += 1
    p /= p.sum(1, keepdims=True)
    task, training = load_task("classify"), Training(frozenset(["a"]), dict.fromkeys(names, 1 / n), None)
    with watch.step("figures of classes"):
        task.report(task.predictions(_table(m), labels, names, Prediction.of(p)), training)
    embeddings = rng.standard_normal((n, 64), dtype="float32")
    parents = {"genus": np.arange(n) // 5, "family": np.arange(n) // 50}
    with watch.step("probabilities of ranks"):
        probabilities(embeddings[labels], labels, embeddings, parents, 100.0)


def gallery(n: int, folder: Path, watch: Watch) -> None:
    """100 queries among n embeddings: ranked for figures, and an index of them that is written, opened and searched."""
    import numpy as np
    import pandas as pd

    from pipeline.features.vectors import open_index, write_index
    from pipeline.metrics.retrieval import rank

    rng, m = np.random.default_rng(0), min(n, 100)
    vectors = rng.standard_normal((n, WIDTH), dtype="float32")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.arange(n) // 10
    with watch.step("rank 100 queries"):
        rank(vectors[:m], labels[:m], vectors, labels, np.arange(m))
    rows = pd.DataFrame({"file": [f"{i}.jpg" for i in range(n)], "species": None, "row": range(n), "width": 1, "height": 1})
    with watch.step("write an index"):
        write_index(folder / "index", "flat", vectors, rows, {}, False)
    with watch.step("open it"):
        index = open_index(folder / "index")
        assert len(index.rows) == n
    with watch.step("100 searches"):
        for query in vectors[:m]:
            index.nearest(query, 10)


KINDS: dict[str, Callable[[int, Path, Watch], None]] = {
    "images": images, "table": table, "trials": trials, "classes": classes, "gallery": gallery,
}  # fmt: skip


def run_here(kind: str, n: int, out: str) -> None:
    """One size of one kind in this process; steps and memory go to a file."""
    if kind != "trials":  # what is loaded anyway is no growth; a command begins as large as what starts it
        import pandas  # noqa: F401
        import torch  # noqa: F401

    watch, before = Watch(), _peak_mb()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        KINDS[kind](n, Path(folder), watch)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if kind == "trials" else _peak_mb() - before
    Path(out).write_text(json.dumps({**watch.steps, "memory": peak}))


def _peak_mb() -> float:
    """The most memory of this process until now; `ru_maxrss`, for where Linux' own count is not, begins at its parent's."""
    told = Path("/proc/self/status")
    if found := re.search(r"VmHWM:\s+(\d+) kB", told.read_text() if told.is_file() else ""):
        return int(found[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------- all of them
def grown(kind: str, sizes: tuple[int, ...], quiet: bool = True) -> dict[int, Steps]:
    """Steps and memory of each size."""
    found = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            code = f"from benchmarks.growth import run_here; run_here({kind!r}, {n}, {str(Path(folder) / 'out')!r})"
            stderr = subprocess.DEVNULL if quiet else None
            subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stderr=stderr)
            found[n] = json.loads((Path(folder) / "out").read_text())
    return found


def exponent(found: dict[int, Steps], step: str) -> float:
    """Slope between the last two sizes; 0 where the last takes no time or memory to speak of."""
    (n, before), (more, after) = list(found.items())[-2:]
    noise = NOISE_MB if step == "memory" else NOISE_S
    if after[step] < noise:
        return 0.0
    return math.log(after[step] / max(before[step], noise / 100)) / math.log(more / n)


def figures_of(kind: str, found: dict[int, Steps]) -> list[Figure]:
    n, last = list(found.items())[-1]
    figures = []
    for step, value in last.items():
        if step == "memory":
            continue
        about = f"CPU {value:.2f} s at {n:,}; between the last two sizes"
        figures.append(Figure(f"growth of {kind}: {step}", exponent(found, step), "exponent", at_most=STEEPEST, about=about))
        if (goal := GOALS.get((kind, step))) and n == SIZES[kind][-1]:
            figures.append(Figure(f"{step}, {n:,} {kind}", value, "s", at_most=goal, about="CPU of the whole command"))
    about = f"between the last two sizes; {last['memory']:.0f} MB at {n:,}"
    return [*figures, Figure(f"growth of {kind}: memory", exponent(found, "memory"), "exponent", at_most=STEEPEST, about=about)]


def measure(short: bool) -> list[Figure]:
    if short:
        with tempfile.TemporaryDirectory() as folder:
            return [_once(kind, Path(folder) / kind) for kind in KINDS]
    opened = _opened()
    sizes = {kind: of if kind == "trials" else of[:-1] for kind, of in SIZES.items()}
    return [opened, *(figure for kind in KINDS for figure in figures_of(kind, grown(kind, sizes[kind])))]


def _opened() -> Figure:
    """How long the store of the beetles' size takes to open, as a trial does."""
    from pipeline.features.store import load_store

    with tempfile.TemporaryDirectory() as folder:
        directory = _write_store(12_000, Path(folder), 768)
        took = statistics.median(seconds(lambda: load_store(directory).missing()) for _ in range(5))
    return Figure("opening a store of 12,000 × 768", 1000 * took, "ms", at_most=50.0, about="manifest, and headers of its shards")


def _once(kind: str, folder: Path) -> Figure:
    """The smallest of SHORT in this process: that it runs."""
    folder.mkdir()
    watch = Watch()
    KINDS[kind](SHORT[kind][0], folder, watch)
    return Figure(f"growth of {kind}: CPU", sum(watch.steps.values()), "s")


# ---------------------------------------------------------------- in docs
def draw(kind: str, found: dict[int, Steps]) -> None:
    """docs/growth/<kind>.svg: seconds of each step over n, both as logarithms, beside a straight line."""
    import pandas as pd

    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.charts.drawing import QUIET, SERIES, plain_ticks, to_svg_file

    steps = [step for step in next(iter(found.values())) if step != "memory"]

    def lines(axes: Any, _: Any) -> None:
        for colour, step in zip(SERIES, steps, strict=False):
            axes.plot(list(found), [max(of[step], 1e-3) for of in found.values()], "o-", color=colour, label=step)
        first, last = min(found), max(found)
        highest = max(of[step] for of in found.values() for step in steps)
        axes.plot([first, last], [highest * first / last, highest], ":", color=QUIET, label="linear")
        axes.set(xscale="log", yscale="log", xlabel=kind, ylabel="seconds of CPU")
        plain_ticks(axes.yaxis)
        axes.legend()

    chart = Chart(f"growth-{kind}", f"Growth with {kind}", f"Seconds of {', '.join(steps)}.", pd.DataFrame(found), lines)
    write_text(PROJECT / "docs" / "growth" / f"{kind}.svg", to_svg_file(chart) + "\n")


def as_markdown(kind: str, found: dict[int, Steps]) -> str:
    lines = [f"| {kind} | {' | '.join(f'{n:,}' for n in found)} | exponent |", "|---" * (len(found) + 2) + "|"]
    for step in next(iter(found.values())):
        unit = "MB" if step == "memory" else "s"
        cells = " | ".join(f"{of[step]:.3g} {unit}" for of in found.values())
        lines.append(f"| {step} | {cells} | {exponent(found, step):.2f} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:] != ["--all"]:
        show(measure(False))
        return
    for kind in KINDS:
        found = grown(kind, SIZES[kind])
        draw(kind, found)
        print(f"{as_markdown(kind, found)}\n\n![Growth with {kind}](growth/{kind}.svg)\n", flush=True)


if __name__ == "__main__":
    main()
