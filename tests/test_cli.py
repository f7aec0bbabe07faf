"""The command line as a person meets it: quick without torch, clear about mistakes, the same from every folder."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__, cli
from pipeline.config.identity import config_hash, plain
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import write_json, write_text
from pipeline.errors import Interrupted, WorkError
from pipeline.experiments.reading import dump_config, load_experiment
from pipeline.launch.jobs import trials
from pipeline.stages import collect as collect_stage
from pipeline.tasks import load_task
from tests.conftest import carabid, hear_ctrl_c

LORA = "configs/beetles/lora.yaml"
COMMANDS = (
    "demo", "init", "generate", "fetch", "archive", "split", "inspect", "plan", "doctor", "submit", "extract", "train",
    "evaluate", "collect", "status", "logs", "cancel", "retry", "results", "compare", "report", "track", "predict",
    "explain", "interpolate", "embed", "index", "search", "export", "publish",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command ended with."""

    status: int
    out: str
    err: str


@pytest.fixture
def type_in(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process. Anything but a clean exit, which a person would see as a traceback, fails the test."""

    def run(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["carabid", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
            raise SystemExit(0)
        said = capsys.readouterr()
        return Said(int(caught.value.code or 0), said.out, said.err)

    return run


# ---------------------------------------------------------------- quick
@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("plan", LORA, "seed=0,1"),
        ("submit", LORA, "seed=0,1", "--dry-run"),
        ("status",),
        ("results",),
        *[(name, "--help") for name in ("train", "demo")],
    ],
    ids=" ".join,
)
def test_what_people_type_on_a_login_node_loads_no_torch(root: Path, command: tuple[str, ...]) -> None:
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    line = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", *command]
    done = subprocess.run(line, capture_output=True, text=True, cwd=PROJECT, env=environ)
    imported = {part.rpartition("|")[2].strip().partition(".")[0] for part in done.stderr.splitlines() if "|" in part}
    assert done.returncode == 0 and "typer" in imported, done.stderr[-2000:]
    heavy = {"torch", "torchvision", "transformers", "peft", "open_clip", "datasets", "sklearn", "pandas", "matplotlib"}
    assert not imported & heavy


def test_plan_and_a_dry_run_answer_in_under_a_second(root: Path) -> None:
    """In CPU seconds of a Python of its own, once in three times: other work on the machine does not count."""
    environ = {**os.environ, "CARABID_ROOT": str(root)}

    def seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        typed = [sys.executable, "-m", "pipeline.cli", *map(str, command)]
        subprocess.run(typed, cwd=PROJECT, env=environ, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for command in (("plan", LORA), ("submit", LORA, "--dry-run"), ("--help",)):
        assert any(seconds(*command) < 1 for _ in range(3)), command


# ---------------------------------------------------------------- help
def test_help_names_every_command(type_in: Callable[..., Said]) -> None:
    said = type_in("--help")
    assert said.status == 0
    assert re.findall(r"^│ (\w+) ", said.out.partition("Commands")[2], re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(type_in: Callable[..., Said], command: str) -> None:
    said = type_in(command, "--help")
    assert said.status == 0 and f"carabid {command}" in said.out


def test_the_version_is_the_packages(type_in: Callable[..., Said]) -> None:
    assert type_in("--version") == Said(0, f"{__version__}\n", "")


# ---------------------------------------------------------------- mistakes
def test_the_mistyped_key_of_the_issue(type_in: Callable[..., Said], root: Path) -> None:
    said = type_in("submit", LORA, "optim.lrr=1")
    assert said.status == 2
    assert said.err == "carabid: on the command line: `optim.lrr` does not exist, but `optim.lr` does\n"
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("generate", "classify", "--out", "made-up"), "takes your own images, and none are made up. Made up are: beetles"),
        (("plan", "configs/beetles/loar.yaml"), "did you mean configs/beetles/lora.yaml?"),
        (("plan", "nosuch.yaml"), "there are: configs/beetles/augmentation.yaml"),
        (("plan", "configs/cluster/slurm.yaml"), "slurm.yaml is a cluster profile: use it as --cluster slurm"),
        (("submit", "configs/cluster/hipergator.yaml"), "use it as --cluster hipergator"),
        (("plan", LORA, "--cluster", LORA), "lora.yaml is an experiment, and no cluster profile; there are: apptainer"),
        (("plan", "configs/beetles"), "configs/beetles is a folder, and a config is a YAML: configs/beetles/augmentation.yaml"),
        (("plan", LORA, "optim.lr=fast"), "`optim.lr`: Input should be a valid number"),
        (("plan", LORA, "optim.kind=sgd"), "'adam' or 'adamw'"),
        (("plan", LORA, "seed"), "write key=value"),
        (("plan", LORA, "seed=1", "seed=2"), "given twice"),
        (("plan", LORA, "data.source=[1"), "not a YAML value"),
        (("plan", LORA, "data.source=\x07"), "not a YAML value"),
        (("plan", sys.executable), "not valid YAML"),
        (("submit", LORA, "--cluster", "slrum"), "did you mean slurm?"),
        (("submit", LORA, "--workers", "0"), "--workers"),
        (("results", "nosuch"), "there is no experiment nosuch"),
        (("results", "--format", "xml"), "choose table, csv, markdown or json"),
        (("status", "nosuch"), "there is no experiment nosuch"),
        (("generate", "butterlies", "--out", "x"), "butterlies"),
        (("train", LORA, "train.epoch=3"), "`train.epochs`"),
        (("plan",), "Missing argument"),
        (("trian", LORA), "No such command"),
        (("plan", LORA, "--seed"), "No such option"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_with_status_2_and_a_message_and_changes_nothing(
    type_in: Callable[..., Said], root: Path, arguments: tuple[str, ...], what: str
) -> None:
    said = type_in(*arguments)
    assert said.status == 2
    assert what in " ".join(said.err.replace("│", " ").split())
    assert list(root.iterdir()) == []


def test_a_missing_config_lists_no_cluster_profiles(type_in: Callable[..., Said]) -> None:
    for name in ("nosuch.yaml", "configs/beetles/slurm.yaml", "configs/cluster/hipergater.yaml"):
        said = type_in("plan", name)
        assert said.status == 2 and "configs/generic/regress.yaml" in said.err
        assert not re.search(r"(there are|did you mean).*configs/cluster", said.err)


def test_a_profile_of_ones_own_is_called_one_wherever_it_lies(type_in: Callable[..., Said], tmp_path: Path) -> None:
    site, experiment = tmp_path / "site.yaml", tmp_path / "mine.yaml"
    shutil.copy(PROJECT / "configs" / "cluster" / "hipergator.yaml", site)
    said = type_in("plan", site)
    assert said.status == 2 and said.err.startswith(f"carabid: {site} is a cluster profile: use it as --cluster {site}")
    experiment.write_text(f"base: {PROJECT / LORA}\nscheduler: {{kind: constant}}\n")
    assert "`scheduler.kind` does not exist, but `schedule.kind` does" in type_in("plan", experiment).err


def test_the_config_of_a_trained_trial_is_an_experiment_of_that_trial(type_in: Callable[..., Said], root: Path) -> None:
    name = finished(root)
    said = type_in("plan", root / "trained" / "beetles-lora" / name / "config.yaml")
    assert said.status == 0 and re.search(rf"^done +{re.escape(name)}$", said.out, re.M)


def test_an_array_with_gaps_is_a_mistake(type_in: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ID": "1", "MIN": "1", "MAX": "9", "STEP": "1", "COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    said = type_in("train", LORA)
    assert said.status == 2 and "--array=0-1" in said.err


# ---------------------------------------------------------------- work that fails
def test_a_submission_where_there_is_no_slurm_is_work_that_failed(
    type_in: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = type_in("submit", LORA)
    assert said.status == 1 and said.err.startswith("carabid: ") and "sbatch" in said.err


def test_a_dry_run_needs_no_slurm(type_in: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = type_in("submit", LORA, "--dry-run")
    assert said.status == 0 and said.out.count("#!/bin/bash") == 4


def test_an_evaluation_queued_outside_a_job_fails_without_a_traceback(
    type_in: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    said = type_in("evaluate", LORA, "--queue")
    assert said.status == 1 and said.err.startswith("carabid: there is no Slurm job")


Work = Callable[[Any], None]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, Exception]], list[int]]:
    """Let training do nothing but note the seed, and raise what is said for it."""

    def replace(errors: dict[int, Exception]) -> list[int]:
        seen: list[int] = []

        def work(trial: Any, *_: object) -> Iterator[Any]:
            seen.append(trial.config.seed)
            if trial.config.seed in errors:
                raise errors[trial.config.seed]
            yield from ()

        monkeypatch.setattr(trials, "training", work)
        return seen

    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return replace


def test_a_trial_that_fails_leaves_the_others_of_its_job_alone_and_is_named(type_in: Callable[..., Said], training: Any) -> None:
    seen = training({1: WorkError("the loss became nan")})
    said = type_in("train", LORA, "seed=0,1,2")
    assert said.status == 0 and seen == [0, 1, 2]
    assert re.search(r"carabid: seed=1-\w{8}: the loss became nan", said.err)
    assert len(re.findall(r"seed=[02]-\w{8}: done in", said.out)) == 2


def test_a_job_none_of_whose_trials_ended_well_has_failed(type_in: Callable[..., Said], training: Any) -> None:
    training(dict.fromkeys((0, 1), WorkError("no")))
    said = type_in("train", LORA, "seed=0,1")
    assert said.status == 1 and "none of 2 trials ended well" in said.err


def test_a_job_that_was_told_to_stop_begins_no_other_trial(type_in: Callable[..., Said], training: Any) -> None:
    """Its time is up: what it began now would be killed."""
    seen = training({1: Interrupted("told to stop after epoch 3")})
    said = type_in("train", LORA, "seed=0,1,2")
    assert seen == [0, 1] and said.status == 1 and "told to stop" in said.err


def test_the_tasks_of_an_array_share_the_trials(
    type_in: Callable[..., Said], training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = training({})
    for rank in range(2):
        for name, value in {"ID": rank, "MIN": 0, "MAX": 1, "STEP": 1, "COUNT": 2}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert type_in("train", LORA, "seed=0,1,2").status == 0
        seen.append(-1)
    assert seen == [0, 2, -1, 1, -1]


def test_a_task_of_an_array_larger_than_the_grid_has_nothing_to_do_and_ends_well(
    type_in: Callable[..., Said], training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = training({})
    for name, value in {"ID": 7, "MIN": 0, "MAX": 7, "STEP": 1, "COUNT": 8}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert type_in("train", LORA, "seed=0,1").status == 0 and seen == []


# ---------------------------------------------------------------- where
def test_commands_work_from_any_folder_and_leave_nothing_in_it(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    here, there = (carabid("plan", LORA, "seed=0,1", root=root, cwd=cwd).stdout for cwd in (PROJECT, elsewhere))
    assert here == there and str(root / "trained" / "beetles-lora") in here
    assert list(elsewhere.iterdir()) == list(root.iterdir()) == []


def test_an_own_config_in_the_current_folder_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {PROJECT / LORA}\noptim: {{lr: 1e-3}}\n")
    assert "beetles-mine" in carabid("plan", "mine.yaml", root=root, cwd=tmp_path).stdout


def finished(root: Path) -> str:
    """A trial with results and one without; returns the name of the first."""
    experiment = load_experiment(PROJECT / LORA, ["seed=0,1"])
    first = experiment.trials[0]
    folder = experiment.dir.trial(first.name)
    write_text(folder.config, dump_config(first.config))
    write_text(experiment.dir.trial(experiment.trials[1].name).config, dump_config(experiment.trials[1].config))
    figures = {"r2": 0.25, "MAE": 0.5, "RMSE": 0.6, "CRPS": 0.4}
    block = figures | {"in_domain": figures, "out_of_domain": figures}
    more = {"split": "test", "selected_on": "validation", "config_hash": config_hash(first.config)}
    evaluation = plain(first.config.evaluate)
    summary = block | {"rms": 0.4, "mean_predictor": {"in_domain": figures, "rms": 0.5}}
    blocks = {"SPEI_1y": block, "summary": summary}
    write_json(folder.results, blocks | load_task("beetles").describe(blocks) | more | {"evaluation": evaluation})
    return first.name


def test_plan_and_status_show_what_is_done_and_what_is_missing(type_in: Callable[..., Said], root: Path) -> None:
    name = finished(root)
    for said in (type_in("plan", LORA, "seed=0,1"), type_in("status"), type_in("status", "beetles-lora")):
        assert re.search(rf"^done +(beetles-lora/)?{re.escape(name)}$", said.out, re.MULTILINE)
        assert re.search(r"^missing +(beetles-lora/)?seed=1-\w{8}  not run$", said.out, re.MULTILINE)


@pytest.mark.parametrize("form", ["table", "csv", "markdown", "json"])
def test_results_show_the_figures_and_name_what_has_none(type_in: Callable[..., Said], root: Path, form: str) -> None:
    name = finished(root)
    said = type_in("results", "--format", form)
    assert said.status == 0 and name in said.out and "0.25" in said.out
    assert "seed=1-" in said.out and "missing" in said.out


def test_sorting_results_by_a_figure_there_is_not_is_a_mistake(type_in: Callable[..., Said], root: Path) -> None:
    finished(root)
    said = type_in("results", "--sort", "accuracy")
    assert said.status == 2 and "SPEI_1y.r2" in said.err


def test_experiments_that_paths_trained_put_elsewhere_can_be_looked_at(
    type_in: Callable[..., Said], root: Path, tmp_path: Path
) -> None:
    name, elsewhere = finished(root), tmp_path / "elsewhere"
    (root / "trained").rename(elsewhere)
    for command in ("status", "results"):
        assert name in type_in(command, "--trained", str(elsewhere)).out
        assert f"no trials yet under {root}" in type_in(command).out
    assert f"no trials yet under {tmp_path}" in type_in("status", "--trained", str(tmp_path)).out


def test_the_last_of_several_collectors_leaves_every_result_in_the_csv(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of an array collect at once: one that read early may write late."""
    finished(root)
    experiment = load_experiment(PROJECT / LORA, ["seed=0,1"])
    first, second = (experiment.dir.trial(trial.name) for trial in experiment.trials)
    real, late = collect_stage.write_text, []

    def write_late(path: Path, text: str) -> None:
        if not late:  # between this collector's look and its writing another result comes, and is collected
            late.append(path)
            shutil.copy(first.results, second.results)
            collect_stage.run(experiment.config)
        real(path, text)

    monkeypatch.setattr(collect_stage, "write_text", write_late)
    collect_stage.run(experiment.config)
    assert late[0].read_text().count(",done,") == 2


def test_collecting_writes_the_csv_of_the_experiment(type_in: Callable[..., Said], root: Path) -> None:
    name = finished(root)
    assert "1 of 2 trials have results" in type_in("collect", LORA).out
    assert name in (root / "trained" / "beetles-lora" / "results.csv").read_text()


SLOW_PLAN = """
import time
from pipeline import cli
from pipeline.launch.watching import plan
def lines(experiment, check):
    print("on", flush=True)
    time.sleep(60)
plan.lines = lines
cli.main()
"""


def test_ctrl_c_ends_a_command_with_a_word_and_no_traceback(root: Path) -> None:
    command, pipe = [sys.executable, "-c", SLOW_PLAN, "plan", str(LORA)], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=hear_ctrl_c) as process:
        assert process.stdout and process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[1] == "carabid: interrupted\n" and process.returncode == 130
