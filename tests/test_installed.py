"""The package where it is installed and not cloned: configurations and job scripts come along, and results go home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.disk.layout import PROJECT
from tests.lab import write_images, write_table

pytestmark = pytest.mark.jobs

SOURCES = ("carabid", "pipeline", "configs", "jobs", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
Command = Callable[..., subprocess.CompletedProcess[str]]


def build(what: str, folder: Path, out: Path) -> Path:
    """As pip does, without an environment of its own."""
    command = [sys.executable, "-c", BUILD.format(what=what), str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel installs, made of a source distribution, which is made of a checkout."""
    folder = tmp_path_factory.mktemp("built")
    for name in SOURCES:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, folder / name)
    with tarfile.open(build("sdist", folder, folder / "dist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", source, folder / "dist")) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Command:
    """Run a command of the installed package in an empty folder, at home in another one."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("CARABID_")}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        environ = {**own, "PYTHONPATH": str(site), "HOME": str(home), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=here, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


def test_a_wheel_holds_every_configuration_and_job_script_as_it_stands_here(site: Path) -> None:
    for name in ("configs", "jobs"):
        here = {path.relative_to(PROJECT): path.read_bytes() for path in (PROJECT / name).rglob("*") if path.is_file()}
        there = {path.relative_to(site / "pipeline"): path.read_bytes() for path in (site / "pipeline" / name).rglob("*.*")}
        assert here == there
    assert (site / "pipeline" / "reporting" / "page" / "page.html.j2").exists() and (site / "carabid" / "__init__.py").exists()
    assert not (site / "configs").exists() and not (site / "setup.py").exists()


def test_a_configuration_that_is_not_here_is_one_that_came_along(installed: Command, tmp_path: Path) -> None:
    (tmp_path / "here" / "mine.yaml").write_text("base: configs/generic/classify.yaml\nexperiment: mine\n")
    trained = tmp_path / "home" / "carabid" / "trained"
    for config, name in (("configs/generic/classify.yaml", "classify"), ("mine.yaml", "mine")):
        said = installed("plan", config, "--no-check", "--cluster", "local").stdout
        assert f"1 trial: 1 missing (in {trained / name})" in said
    said = installed("plan", "configs/generic/clasify.yaml", "--cluster", "local", status=2).stderr
    assert "did you mean configs/generic/classify.yaml?" in said


def test_what_is_drafted_goes_where_one_is_and_results_go_home(installed: Command, tmp_path: Path) -> None:
    rows = [(name, "abc"[i % 3]) for i, name in enumerate(write_images(tmp_path / "here", 30))]
    write_table(tmp_path / "here", rows, ("photo", "kind"), name="photos.csv")
    assert f"trained/ lie in {tmp_path / 'home' / 'carabid'}." in installed("init", "photos.csv", "--backbone", "pixels").stdout
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"images", "photos.csv", "photos.yaml"}


def test_job_scripts_are_copied_where_one_is(installed: Command, tmp_path: Path) -> None:
    installed("init", "--jobs")
    there = {path.name: path.read_bytes() for path in (tmp_path / "here" / "jobs").iterdir()}
    assert there == {path.name: path.read_bytes() for path in (PROJECT / "jobs").iterdir()}


@pytest.mark.long
def test_a_table_is_drafted_trained_on_and_reported(installed: Command, site: Path, tmp_path: Path) -> None:
    """By the installed code: so say its jobs, of which a snapshot was taken."""
    rows = [(name, "abc"[i % 3]) for i, name in enumerate(write_images(tmp_path / "here", 30))]
    write_table(tmp_path / "here", rows, ("photo", "kind"), name="photos.csv")
    assert str(tmp_path / "home" / "carabid") in installed("init", "photos.csv", "--backbone", "pixels").stdout
    assert f"code {site}" in installed("submit", "photos.yaml", "--cluster", "local").stdout
    installed("report", "photos")
    experiment = tmp_path / "home" / "carabid" / "trained" / "photos"
    assert (experiment / "report.html").exists() and list(experiment.glob("code/*/pipeline/cli/commands.py"))
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"images", "photos.csv", "photos.yaml"}


@pytest.mark.long
def test_the_demo_runs_where_nothing_is(installed: Command, tmp_path: Path) -> None:
    assert "baseline" in installed("demo", "--out", str(tmp_path / "demo")).stdout
