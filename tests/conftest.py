"""Fixtures that several test files share: small generated data, tiny backbones, the command line in a subprocess, Slurm."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment
from pipeline.sweeps import sweep_seldom
from tests import forked
from tests.cluster.cluster import Cluster
from tests.small import make_small

os.environ.setdefault("OMP_NUM_THREADS", "1")
sweep_seldom()
# Other work on this machine may slow one example down: how long it took says nothing of the code.
settings.register_profile("untimed", parent=settings.default, deadline=None)
settings.load_profile("untimed")
LONGEST = (
    "test_slurm.py", "test_chaos.py", "test_demo.py", "test_failure_classes.py", "test_training.py", "test_local.py",
    "test_benchmarks.py", "test_cluster.py", "test_export.py", "test_report.py", "test_ensembles.py", "test_own_task.py",
    "test_submission_check.py", "test_pack.py", "test_tracking.py", "test_evaluation.py", "test_search.py",
    "test_export_open_clip.py", "test_fetch.py", "test_secrets.py", "test_butterflies.py", "test_content.py", "test_fuzz.py",
    "test_processes.py", "test_backbones.py", "test_species.py", "test_explain.py", "test_publish.py", "test_installed.py",
    "test_init.py", "test_docs.py", "test_inspect.py", "test_completion.py", "test_decoding.py", "test_launch.py",
    "test_streams.py", "test_extract.py", "test_snapshot.py", "test_towers.py", "test_later.py", "test_results.py",
    "test_experiment.py", "test_notebook.py", "test_api.py",
)  # fmt: skip
"""Files that take minutes: begun first, or all workers but one would be idle at the end."""
QUICK = ("device=cpu", "train.precision=fp32", "resources.lease_seconds=1")
"""Of every trial of `Assets`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files go to one worker (`--dist loadfile`), which makes one Slurm and one demo, in this order."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@dataclass(frozen=True)
class Assets:
    """Folders: generated beetles, a tiny open_clip model and a tiny DINOv2 in their hubs' layouts."""

    data: Path
    clip: Path
    dinov2: Path

    def overrides(self, method: str) -> tuple[str, ...]:
        """What makes a config of configs/beetles run on these, quickly."""
        name = f"{self.dinov2}" if method == "dinov2" else f"local-dir:{self.clip}"
        backbone = () if method in ("mean_rgb", "pixels", "climatology", "metadata") else (f"backbone.name={name}",)
        return (f"data.source={self.data}", *backbone, *QUICK)

    def on_pixels(self) -> tuple[str, ...]:
        """The same for `frozen`, where it does not matter of which backbone the features are: what takes longest in a process
        that extracts is to load open_clip."""
        return (f"data.source={self.data}", "backbone={kind: pixels, size: 16}", *QUICK)


def assets_in(folder: Path) -> Assets:
    return Assets(folder / "beetles", folder / "clip", folder / "dinov2")


def make_assets(folder: Path) -> Assets:
    from pipeline.backbones.tiny import write_tiny_dinov2, write_tiny_open_clip
    from pipeline.tasks import load_task

    made = assets_in(folder)
    load_task("beetles").generate(made.data, seed=0, scale=0.1)
    write_tiny_open_clip(made.clip)
    write_tiny_dinov2(made.dinov2)
    return made


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """`made_once(name, write)`: a folder that no test changes, written by the worker that wants it first, for all of them."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place

    def make(name: str, write: Callable[[Path], object]) -> Path:
        folder, done = place / name, place / f"{name}.done"
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                write(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def assets(made_once: MakeOnce) -> Assets:
    return assets_in(made_once("assets", make_assets))


def slurm_environ(cluster: Cluster) -> dict[str, str]:
    """What jobs and commands need: the way to the cluster, `carabid` on the PATH, one thread each."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**cluster.env(), "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A private Slurm."""
    with started(Cluster(Path(tempfile.gettempdir()) / f"carabid-test-{os.getpid()}")) as slurm:
        yield slurm


@contextmanager
def started(slurm: Cluster) -> Iterator[Cluster]:
    """The cluster, up; the test is skipped where its packages are not installed."""
    if missing := slurm.missing_packages():
        pytest.skip(f"Slurm's packages are not installed: {', '.join(missing)}")
    slurm.up()
    try:
        yield slurm
    finally:
        slurm.down()


@pytest.fixture
def environ(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, with the cluster in the environment and `carabid` on the PATH."""
    for name, value in {**slurm_environ(cluster), "CARABID_ROOT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CARABID_ROOT."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("CARABID_ROOT", str(folder))
    return folder


@pytest.fixture
def config_of(assets: Assets, root: Path) -> Callable[..., Config]:
    """A trial's config: `config_of("lora", "train.epochs=2")`."""

    def make(method: str, *overrides: str) -> Config:
        return load_experiment(f"configs/beetles/{method}.yaml", (*assets.overrides(method), *overrides)).config

    return make


def carabid(*arguments: str | Path, root: Path, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; with `check`, a non-zero exit status fails the test with what it printed."""
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    done = forked.run([*map(str, arguments)], cwd or PROJECT, environ, 600)
    assert not check or done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done


def hear_ctrl_c() -> None:
    """For a process that is to be interrupted: a suite in the background ignores Ctrl-C, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_vocabulary() -> Iterator[None]:
    """open_clip's own tokenizers of the same arguments are one: each reads the vocabulary, which some files would do a hundred
    times."""
    from open_clip import factory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "SimpleTokenizer", cache(factory.SimpleTokenizer))
        yield


@pytest.fixture(scope="session")
def clip(assets: Assets) -> Path:
    """The tiny open_clip model."""
    return assets.clip


@pytest.fixture(scope="session")
def generated(made_once: MakeOnce) -> Path:
    """Generated beetles as a CSV with images."""
    from pipeline.tasks import load_task

    return made_once("generated", lambda folder: load_task("beetles").generate(folder, scale=0.01, form="csv"))


@pytest.fixture(scope="session")
def table(generated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of forty images that no test changes."""
    return make_small(generated, tmp_path_factory.mktemp("small") / "data")


@pytest.fixture
def own(generated: Path, tmp_path: Path) -> Path:
    """The CSV of forty images that a test may change."""
    return make_small(generated, tmp_path / "data")
