"""`carabid results --cost`: what each trial took, done or not, and the sums."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.attempts import Attempt, spent
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.experiments.reading import Experiment
from pipeline.reporting.cost import HEADER, Cost, collect, print_table, to_csv, to_json, to_markdown, total
from pipeline.reporting.results import collect as collect_results
from pipeline.reporting.results import sort_rows
from tests.conftest import carabid
from tests.test_results import finish, plan

pytestmark = [pytest.mark.jobs, pytest.mark.usefixtures("root")]
HOUR = 3600


def took(*seconds: float, job: str = "7", node: str = "n1", gpus: int = 1, shared_by: int = 1) -> dict[str, Any]:
    """What a stage's provenance holds of its attempts, one for each number of seconds, within one job."""
    gpu = "NVIDIA A100" if gpus else None
    return spent([Attempt(job, number, node, gpu, gpus, shared_by, each) for number, each in enumerate(seconds)])


def folder(experiment: Experiment, number: int) -> TrialDir:
    return experiment.dir.trial(experiment.trials[number].name)


def costs(experiment: Experiment) -> list[Cost]:
    return collect([experiment.dir], collect_results([experiment.dir]))


@pytest.fixture
def experiment() -> Experiment:
    """Five trials: done in three attempts, done in a pack, failed after an hour, trained, and missing."""
    experiment = plan("optim.lr=1e-3,2e-3,3e-3,4e-3,5e-3")
    for number, r2 in enumerate((0.1, 0.6)):
        finish(experiment.trials[number], experiment, r2)
    first = took(HOUR, HOUR, HOUR / 2, job="41_0", gpus=2)
    write_json(folder(experiment, 0).provenance, {"train": first, "evaluate": took(HOUR / 2, job="43_0", node="n2")})
    packed = took(HOUR, job="41_1", shared_by=4)
    write_json(folder(experiment, 1).provenance, {"train": packed, "evaluate": took(0, job="43_1", gpus=0)})
    write_json(folder(experiment, 2).failure, {"stage": "train", "message": "the loss became nan"})
    write_json(folder(experiment, 2).attempts, {"identity": "x"} | took(HOUR, job="41_2"))
    write_json(folder(experiment, 3).trained, {"config_hash": "x", "provenance": took(HOUR, job="41_3", gpus=0)})
    return experiment


def test_time_gpus_nodes_and_jobs_of_both_stages_and_all_attempts_are_joined(experiment: Experiment) -> None:
    name, trial = experiment.dir.path.name, experiment.trials[0].name
    assert costs(experiment)[0] == Cost(name, trial, "done", 3.0, 5.5, "NVIDIA A100", 2, "n1, n2", "41_0, 43_0")


def test_a_trial_of_a_pack_has_its_share_of_the_gpu(experiment: Experiment) -> None:
    cost = costs(experiment)[1]
    assert (cost.hours, cost.gpu_hours, cost.jobs) == (1.0, 0.25, "41_1, 43_1")


def test_what_failed_has_cost_something_too(experiment: Experiment) -> None:
    cost = costs(experiment)[2]
    assert (cost.state, cost.hours, cost.gpu_hours, cost.jobs) == ("failed", 1.0, 1.0, "41_2")


def test_what_is_trained_and_not_evaluated_has_the_cost_of_its_training(experiment: Experiment) -> None:
    cost = costs(experiment)[3]
    assert (cost.state, cost.hours, cost.gpu_hours, cost.gpu) == ("trained", 1.0, 0.0, "none")


def test_what_left_no_record_is_not_made_up(experiment: Experiment) -> None:
    cost = costs(experiment)[4]
    assert (cost.state, cost.hours, cost.gpu_hours, cost.gpu, cost.restarts) == ("missing", None, None, None, None)


def test_the_sums_say_of_how_many_trials_they_are(experiment: Experiment) -> None:
    assert total(costs(experiment)) == {"trials": 5, "with_record": 4, "hours": 6.0, "gpu_hours": 6.75, "restarts": 2}


@pytest.mark.parametrize("content", ["", "[]", '{"train": 1}', '{"train": {"seconds": 5}, "evaluate": null}'])
def test_a_record_that_is_damaged_or_of_another_form_is_no_cost_and_no_traceback(experiment: Experiment, content: str) -> None:
    write_text(folder(experiment, 0).provenance, content)
    assert costs(experiment)[0].hours is None and costs(experiment)[1].hours == 1.0


def test_a_stage_without_a_record_leaves_the_other(experiment: Experiment) -> None:
    path = folder(experiment, 0).provenance
    write_json(path, read_json(path) | {"evaluate": {"seconds": 5}})
    assert costs(experiment)[0].hours == 2.5


# ---------------------------------------------------------------- formats
def test_csv_has_a_line_for_each_trial_and_none_for_the_sums(experiment: Experiment) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(costs(experiment)))))
    assert [line["trial"] for line in lines] == [trial.name for trial in experiment.trials]
    assert (lines[0]["hours"], lines[0]["gpu_hours"], lines[0]["nodes"]) == ("3.0", "5.5", "n1, n2")
    assert lines[4]["hours"] == "" and lines[4]["state"] == "missing"


def test_json_has_the_trials_and_the_sums(experiment: Experiment) -> None:
    values = json.loads(to_json(costs(experiment)), parse_constant=pytest.fail)
    assert values["trials"][2]["gpu_hours"] == 1.0 and values["trials"][4]["gpu_hours"] is None
    assert values["total"]["gpu_hours"] == 6.75


def test_markdown_ends_with_the_sums(experiment: Experiment) -> None:
    lines = [line.strip("| ").split(" | ") for line in to_markdown(costs(experiment)).splitlines()]
    assert tuple(lines[0]) == HEADER and len(lines) == 2 + 5 + 1
    assert lines[-1][:5] == ["total", "5 trials, 4 of them with a record", "", "6", "6.75"]
    assert lines[-2][3:] == ["–"] * 6


def test_the_table_shows_trials_and_sums(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(costs(experiment))
    printed = capsys.readouterr().out
    assert all(title in printed for title in HEADER) and "6.75" in printed and "total" in printed


def test_nothing_yet_is_a_sentence_a_header_and_sums_of_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_table([])
    assert capsys.readouterr().out == f"no trials yet under {root / 'trained'}\n"
    assert len(to_csv([]).splitlines()) == 1 and json.loads(to_json([]))["total"]["trials"] == 0


def test_short_runs_are_not_shown_as_nothing() -> None:
    lines = to_markdown([Cost("e", "t", "done", 0.000123, 0.0000311, "none", 0, "n", "")])
    assert "| 0.000123 | 3.11e-05 |" in lines


# ---------------------------------------------------------------- the command
def test_trials_stand_in_the_order_of_the_results(experiment: Experiment) -> None:
    rows = sort_rows(collect_results([experiment.dir]), "r2")
    assert [cost.trial for cost in collect([experiment.dir], rows)] == [row.trial for row in rows]
    assert rows[0].trial == experiment.trials[1].name


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "json"])
def test_the_command_shows_costs_in_every_form(experiment: Experiment, root: Path, form: str) -> None:
    done = carabid("results", "--cost", "--format", form, root=root)
    assert "41_0, 43_0" in " ".join(done.stdout.split()) and not done.stderr
    assert done.stdout.count("\n") > 5 and not done.stdout.endswith("\n\n")


def test_the_command_refuses_a_form_that_there_is_not(experiment: Experiment, root: Path) -> None:
    for more in ([], ["--cost"]):
        done = carabid("results", *more, "--format", "xml", root=root, check=False)
        assert done.returncode == 2 and "choose table, csv, markdown or json" in done.stderr
