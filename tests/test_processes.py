"""One trial in several processes: the model of one, from and to the same checkpoint; who starts them, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.identity import config_hash
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.errors import Interrupted, UserError, WorkError
from pipeline.experiments.reading import Trial, load_experiment
from pipeline.launch.jobs.trials import train_trial, trial_dir
from pipeline.launch.manifest.manifest import Terms, preview_manifest
from pipeline.launch.submitting import sbatch
from pipeline.signals import StopFlag
from pipeline.stages import extract, several
from pipeline.training.process_ranks import Rank, first_host, launched
from pipeline.training.processes import Processes
from pipeline.training.towers import check_shares
from tests import forked
from tests.test_species import place as place  # the fixture

QUICK = ("device=cpu", "train.precision=fp32", "features.dtype=fp32", "resources.lease_seconds=1", "train.batch_size=15")
ROWS = "weights: {classes: inverse_frequency, focal: 2}"
INFONCE = (f"loss={{kind: infonce, targets: multipositive, {ROWS}}}", "optim.clip=0.1", "optim.lr=1e-3")
SECOND = "second: {weight: 0.3, kind: infonce}, images: {weight: 0.5}"
BCE = (
    f"loss={{kind: pair_bce, targets: hierarchical, weights: {{balance: true}}, {SECOND}}}",
    "train.batches={kind: classes}",
    "texts.templates=['a photo of $SCI$','$COM$','$TAX$ $SEX$']",
    "augment.noise=0.01",
    "optim.lr=1e-2",
)
TOLD, ENDED = 3, 0


class StopAfter(StopFlag):
    """Told to stop by a signal when so many batches are done."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def overdue(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self._note(signal.SIGTERM, None)
        return super().overdue()


@pytest.fixture
def trial_of(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trial]:
    monkeypatch.setenv("CARABID_ROOT", str(place / "root"))

    def make(folder: str, *overrides: str, method: str = "projection", epochs: int = 4) -> Trial:
        """The first trial of a configuration of species, trained in a folder of its own."""
        own = (f"data.source={place / 'data' / 'metadata.csv'}", f"backbone.name=local-dir:{place / 'clip'}", *QUICK)
        more = (f"train.epochs={epochs}", f"paths.trained={tmp_path / folder}", "seed=0")
        return load_experiment(PROJECT / "configs/species" / f"{method}.yaml", (*own, *more, *overrides)).trials[0]

    return make


def of_rank(number: int, port: int, root: str, trial: Trial, stop_after: int) -> None:
    """One process of two, as torchrun would start it."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_PORT": str(port)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "CARABID_ROOT": root, "OMP_NUM_THREADS": "1"}
    flag = StopAfter(stop_after) if number == 1 else StopFlag()
    with flag.installed():
        try:
            train_trial(trial, flag)
        except Interrupted:
            os._exit(TOLD)


def by_two(trial: Trial, stop_after: int = -1, late: float = 0) -> list[int | None]:
    """Train in two processes, of which the second begins so many seconds later, or is told to stop after so many batches; returns
    how they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [forked.process(of_rank, n, port, os.environ["CARABID_ROOT"], trial, stop_after) for n in range(2)]
    for each in started:
        each.start()
        time.sleep(late)
    for each in started:
        each.join(120)
    return [each.exitcode for each in started]


def by_one(trial: Trial, flag: StopFlag | None = None) -> TrialDir:
    extract.ensure(trial.config)
    train_trial(trial, flag or StopFlag())
    return trial_dir(trial)


def assert_same(one: TrialDir, two: TrialDir) -> None:
    """The same weights and the same course, to rounding."""
    mine, other = load_file(one.model), load_file(two.model)
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)
    lines = [[json.loads(line) for line in folder.metrics.read_text().splitlines()] for folder in (one, two)]
    assert len(lines[0]) == len(lines[1])
    for key in [key for key in lines[0][0] if key.startswith(("train/", "val/"))]:
        for mine, theirs in zip(*([line[key] for line in of] for of in lines), strict=True):
            if key != "train/loss_batches":  # (each process has its own)
                assert mine == pytest.approx(theirs, abs=1e-4)


# ---------------------------------------------------------------- what they learn
@pytest.mark.jobs
@pytest.mark.parametrize(
    ("method", "loss"), [("finetune", (*INFONCE, "model.encoder.blocks=1", "model.text.blocks=1")), ("projection", BCE)]
)
def test_two_processes_that_share_out_uneven_batches_learn_what_one_does(
    method: str, loss: tuple[str, ...], trial_of: Callable[..., Trial]
) -> None:
    one = by_one(trial_of("one", *loss, method=method))
    two = trial_of("two", *loss, "train.processes=2", method=method)
    assert by_two(two) == [ENDED, ENDED]
    assert_same(one, trial_dir(two))


@pytest.mark.jobs
def test_a_checkpoint_of_two_goes_on_with_one_and_back_and_a_signal_to_one_of_them_stops_both(
    trial_of: Callable[..., Trial],
) -> None:
    undisturbed = by_one(trial_of("one", *BCE))
    two, alone = trial_of("parts", *BCE, "train.processes=2"), trial_of("parts", *BCE)
    folder = trial_dir(two)
    assert folder.path == trial_dir(alone).path, "how many share the work is no part of what a trial is"
    assert by_two(two, stop_after=3) == [TOLD, TOLD]
    assert folder.resume_state.exists() and len(folder.metrics.read_text().splitlines()) == 1
    with pytest.raises(Interrupted):
        train_trial(alone, StopAfter(3))
    assert len(folder.metrics.read_text().splitlines()) == 2
    assert by_two(two) == [ENDED, ENDED]
    assert_same(undisturbed, folder)
    provenance = json.loads(folder.trained.read_text())["provenance"]
    assert provenance["resumed"] == 2 and [", 2 processes" in name for name in provenance["computed_on"]] == [True, False, True]


@pytest.mark.jobs
def test_one_that_comes_when_nothing_is_left_to_train_ends_well_too(trial_of: Callable[..., Trial]) -> None:
    by_one(trial_of("done", *BCE, epochs=1))
    assert by_two(trial_of("done", *BCE, "train.processes=2", epochs=1), late=4) == [ENDED, ENDED]


@pytest.mark.parametrize("number", [0, 1], ids=["the port is taken", "nobody is there"])
def test_processes_that_cannot_meet_say_where(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "COMING", timedelta(seconds=1))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if number == 0:
            taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(WorkError, match=rf"cannot meet at 127\.0\.0\.1:{port} \(MASTER_ADDR, MASTER_PORT\): "):
            several._store(Rank(number, 2, number, ("127.0.0.1", port)))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [4, 15, 16, 17])
def test_every_row_of_a_batch_is_of_one_process(n: int, rows: int) -> None:
    found: list[int] = []
    for number in range(n):
        processes = Processes()
        processes.number, processes.size = number, n
        found += range(rows)[processes.part(rows)]
    assert found == list(range(rows))


def test_a_network_that_reads_a_whole_batch_at_once_is_not_shared_out() -> None:
    two, norms = Processes(), torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    two.size = 2
    check_shares(norms, Processes())
    check_shares(torch.nn.Linear(2, 2), two)
    with pytest.raises(UserError, match=r"batch norms.*train.processes=1"):
        check_shares(norms, two)


# ---------------------------------------------------------------- who starts them
@pytest.mark.jobs
def test_a_process_that_dies_ends_the_training_with_words(trial_of: Callable[..., Trial]) -> None:
    """Started by the main process itself, as `carabid train` does."""
    trial = trial_of("dying", "train.processes=2", epochs=100000)
    folder = trial_dir(trial)
    extract.ensure(trial.config)
    main = forked.process(alone, os.environ["CARABID_ROOT"], trial)
    main.start()
    wait_until(lambda: folder.metrics.exists() and len(folder.metrics.read_text().splitlines()) > 1)
    assert main.pid is not None
    (other,) = children_of(main.pid)
    os.kill(other, signal.SIGKILL)
    main.join(60)
    assert main.exitcode == 1
    said = json.loads(folder.failure.read_text())["message"]
    assert "process 2 of 2 was killed by SIGKILL" in said and "run it again" in said


def alone(root: str, trial: Trial) -> None:
    os.environ |= {"CARABID_ROOT": root, "OMP_NUM_THREADS": "1"}
    with StopFlag().installed() as flag:
        train_trial(trial, flag)


def children_of(pid: int) -> list[int]:
    """Processes that train, of those that this one has started."""
    found = [int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()]
    return [each for each in found if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]


def wait_until(reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < until
        time.sleep(0.1)


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[07,09]"}


def test_a_process_knows_its_rank_by_torchrun_and_by_srun() -> None:
    by_torchrun, by_srun = launched(2, TORCHRUN), launched(2, SRUN)
    assert by_torchrun and by_srun
    assert (by_torchrun.number, by_torchrun.local, by_torchrun.address) == (1, 1, ("gpu1", 29500))
    assert (by_srun.number, by_srun.local, by_srun.address[0]) == (1, 0, "gpu07") and not by_srun.is_main


def test_one_process_that_was_started_starts_the_others_and_another_number_is_refused() -> None:
    assert launched(2, {}) is None and launched(2, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert launched(1, TORCHRUN) is None
    with pytest.raises(UserError, match=r"2 processes were started, and train.processes is 4"):
        launched(4, TORCHRUN)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("gpu[03-07,9],x", "gpu03"), ("r[1-2]-ib", "r1-ib"), ("a-b,c[1-2]", "a-b")],
)
def test_the_first_of_slurms_nodes_is_where_they_meet(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


# ---------------------------------------------------------------- what is asked for
SOURCE = ("data.source=/data/species.csv", "data.label=species")


def scripts_of(*overrides: str) -> dict[str, list[str]]:
    experiment = load_experiment(PROJECT / "configs/species/finetune.yaml", (*SOURCE, "seed=0,1", *overrides))
    manifest = preview_manifest(experiment, experiment.trials, Terms())
    return {stage: script.splitlines() for stage, script in sbatch.scripts(manifest, sbatch.chain(manifest))}


def test_a_training_asks_slurm_for_what_each_of_its_processes_uses_and_no_other_stage_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path))
    one, four = scripts_of(), scripts_of("train.processes=4")
    for line in ("--gpus-per-node=4", "--cpus-per-task=16", "--mem=128G"):
        assert f"#SBATCH {line}" in four["train"]
    assert [line for line in four["evaluate"] if "#SBATCH" in line] == [line for line in one["evaluate"] if "#SBATCH" in line]


def test_how_many_share_the_work_is_no_part_of_what_a_trial_is() -> None:
    one, two = (
        load_experiment(PROJECT / "configs/species/finetune.yaml", (*SOURCE, "seed=0", f"train.processes={n}")).trials[0]
        for n in (1, 2)
    )
    assert config_hash(one.config) == config_hash(two.config) and one.name == two.name


@pytest.mark.parametrize(
    ("yaml", "overrides", "why"),
    [
        ("species/finetune", ("train.processes=1,2", "seed=0"), "differ in train.processes alone"),
        ("species/few_shot", ("train.processes=2",), r"is trained in one process: set train.processes 1"),
        ("beetles/finetune", ("train.processes=2",), r"model.head.kind mlp is trained in one process"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_in_words(yaml: str, overrides: tuple[str, ...], why: str) -> None:
    more: tuple[Any, ...] = SOURCE if yaml.startswith("species") else ()
    with pytest.raises(UserError, match=why):
        load_experiment(PROJECT / "configs" / f"{yaml}.yaml", (*more, *overrides))
