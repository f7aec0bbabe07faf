"""How long what is left will take: from which past trials it is told, how it is scaled, and what is said without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.experiments.reading import Experiment, dump_config, load_experiment
from pipeline.launch.watching import forecast as module
from pipeline.launch.watching.forecast import forecast, job_task_sizes
from pipeline.reporting.state import TrialState

FROZEN = PROJECT / "configs" / "beetles" / "frozen.yaml"
NOTHING = "forecast: no past trial to tell from"
pytestmark = pytest.mark.usefixtures("root")


def load(*overrides: str) -> Experiment:
    return load_experiment(FROZEN, overrides)


def trained(
    experiment: Experiment,
    index: int = 0,
    *,
    seconds: float = 3600,
    around: float = 0,
    gpu: str | None = "NVIDIA H100",
    attempts: int = 1,
) -> TrialDir:
    """The folder of a trial that was trained to the end, `seconds` long and `around` more, on this GPU, in all attempts."""
    trial = experiment.trials[index]
    folder = experiment.dir.trial(trial.name)
    write_text(folder.config, dump_config(trial.config))
    took = {"training_seconds": seconds, "seconds": seconds + around, "device": {"gpu": gpu}}
    took["attempts"] = [{}] * attempts
    write_json(folder.trained, {"epochs": trial.config.train.epochs, "provenance": took})
    return folder


def evaluated(folder: TrialDir, seconds: float) -> TrialDir:
    write_json(folder.provenance, {"evaluate": {"seconds": seconds}})
    return folder


def change(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def told(experiment: Experiment, **states: str) -> str:
    """The forecast where trial i is in state `states[f"t{i}"]`, the others missing."""
    given: list[Any] = [states.get(f"t{i}", "missing") for i in range(len(experiment.trials))]
    return forecast(experiment, [TrialState(state) for state in given])


# ---------------------------------------------------------------- the line
def test_the_line_says_trials_hours_their_product_and_what_it_rests_on() -> None:
    experiment = load("seed=0,1,2,3,4,5,6,7,8")
    for index, seconds in enumerate((600, 720, 780)):
        evaluated(trained(experiment, index, seconds=seconds, around=36), 20)
    line = "forecast: 6 trials × 0.21 h = 1.3 GPU-hours to train and evaluate (from 3 past trials on NVIDIA H100)"
    assert told(experiment, t0="done", t1="done", t2="done") == line


def test_where_all_is_done_nothing_is_forecast() -> None:
    experiment = load()
    trained(experiment)
    assert told(experiment, t0="done") == ""


def test_without_a_past_trial_nothing_is_made_up() -> None:
    assert told(load("seed=0,1")) == NOTHING


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 trial × less than 0.001 h = less than 0.001 GPU-hours"),
        (36, "1 trial × 0.01 h = 0.01 GPU-hours"),
        (4446, "1 trial × 1.2 h = 1.2 GPU-hours"),
        (3600 * 123.4, "1 trial × 123 h = 123 GPU-hours"),
    ],
)
def test_hours_are_written_with_two_digits_that_count(seconds: float, words: str) -> None:
    experiment = load("seed=0,1")
    trained(experiment, 0, seconds=seconds)
    assert told(experiment, t0="done").startswith(f"forecast: {words} ")


def test_where_only_some_trials_have_a_past_the_others_are_counted() -> None:
    experiment = load("model.encoder.kind=frozen,patch_convs", "seed=0,1,2")
    trained(experiment, 0)
    said = told(experiment, t0="done")
    assert said.startswith("forecast: 2 trials × 1 h = 2 GPU-hours ")
    assert said.endswith("(from 1 past trial on NVIDIA H100); no past trial to tell from for 3 more trials")


# ---------------------------------------------------------------- what it counts
def test_hours_are_multiplied_by_the_gpus_that_each_stage_asks_for() -> None:
    overrides = ("seed=0,1", "resources.train.gpus_per_node=4", "resources.evaluate.gpus_per_node=2")
    experiment = load(*overrides)
    evaluated(trained(experiment, 0, seconds=3600), 1800)
    assert told(experiment, t0="done").startswith("forecast: 1 trial × 1.5 h = 5 GPU-hours ")


def test_work_that_asks_for_no_gpu_is_told_in_hours() -> None:
    experiment = load("seed=0,1", "resources.train.gpus_per_node=0", "resources.evaluate.gpus_per_node=0")
    trained(experiment, 0, gpu=None)
    said = told(experiment, t0="done")
    assert said == "forecast: 1 trial × 1 h = 1 hours without a GPU to train and evaluate (from 1 past trial on CPU)"


def test_a_trial_that_is_trained_needs_its_evaluation_alone() -> None:
    experiment = load("seed=0,1")
    evaluated(trained(experiment, 0), 1800)
    trained(experiment, 1)
    assert told(experiment, t0="done", t1="trained").startswith("forecast: 1 trial × 0.5 h ")


@pytest.mark.parametrize("state", ["stale", "queued", "running", "interrupted", "failed", "missing"])
def test_every_other_state_counts_as_a_whole(state: str) -> None:
    experiment = load("seed=0,1")
    trained(experiment, 0)
    assert told(experiment, t0="done", t1=state).startswith("forecast: 1 trial × 1 h ")


# ---------------------------------------------------------------- scaling
def test_other_epochs_are_scaled_by_those_that_were_run_and_what_lies_around_is_not() -> None:
    experiment = load("train.epochs=100,400")
    trained(experiment, 0, seconds=3600, around=1800)
    assert told(experiment, t0="done").startswith("forecast: 1 trial × 4.5 h ")
    change(experiment.dir.trial(experiment.trials[0].name).trained, epochs=50)
    assert told(experiment, t0="done").startswith("forecast: 1 trial × 8.5 h ")


def test_patience_that_ended_a_trial_early_ends_its_repetitions_as_early() -> None:
    experiment = load("train.epochs=100", "train.patience=5", "seed=0,1")
    change(trained(experiment, 0).trained, epochs=20)
    assert told(experiment, t0="done").startswith("forecast: 1 trial × 1 h ")
    patient = load("train.epochs=100", "train.patience=null", "seed=0,1")
    assert told(patient).startswith("forecast: 2 trials × 5 h ")


@pytest.mark.parametrize("head", ["ridge", "climatology", "boosting"])
def test_what_is_not_trained_by_gradient_descent_has_no_epochs_to_scale_by(head: str) -> None:
    experiment = load(f"model.head.kind={head},mlp", "train.epochs=10,1000", "seed=0")
    trained(experiment, 0)
    assert told(experiment, t0="done", t2="done", t3="done").startswith("forecast: 1 trial × 1 h ")


def test_a_trial_that_was_resumed_is_told_from_all_its_attempts() -> None:
    """All trained, and each began anew: the next trial begins once."""
    experiment = load("seed=0,1")
    trained(experiment, 0, seconds=1800, around=5400, attempts=3)
    assert told(experiment, t0="done").startswith("forecast: 1 trial × 1 h ")


# ---------------------------------------------------------------- which past trials
def test_an_older_trial_of_the_experiment_tells_where_its_plan_has_none() -> None:
    trained(load("optim.lr=1"))
    assert told(load("optim.lr=2", "seed=0,1")).startswith("forecast: 2 trials × 1 h ")


def test_another_experiment_under_the_same_root_tells_where_its_own_has_none() -> None:
    for experiment in ("a", "b"):
        trained(load(f"experiment={experiment}"), seconds=7200)
    assert "× 2 h = 2 GPU-hours to train and evaluate (from 2 past trials" in told(load())
    trained(load("optim.lr=1"), seconds=3600)
    assert "× 1 h = 1 GPU-hours to train and evaluate (from 1 past trial" in told(load())


@pytest.mark.parametrize(
    "other",
    [
        "data.source=elsewhere",
        "backbone.name=ViT-B-32",
        "backbone={kind: pixels}",
        "model.encoder.kind=patch_convs",
        "model.encoder={kind: finetuned, blocks: 3}",
        "model.head.kind=ridge",
    ],
)
def test_a_trial_of_another_kind_tells_nothing(other: str) -> None:
    trained(load(other))
    assert told(load()) == NOTHING


def test_stale_results_of_the_plan_tell_how_long_it_took() -> None:
    experiment = load()
    trained(experiment)
    assert told(experiment, t0="stale").startswith("forecast: 1 trial × 1 h ")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"epochs": 1, "provenance": null}', '{"epochs": "x", "provenance": {}}']
)
def test_a_record_that_cannot_be_read_is_no_past_trial(content: str) -> None:
    experiment = load("seed=0,1")
    write_text(trained(experiment, 0).trained, content)
    assert told(experiment, t0="done") == NOTHING
    assert told(load("optim.lr=1")) == NOTHING


def test_a_past_trial_without_an_evaluation_tells_of_training_alone() -> None:
    experiment = load("seed=0,1,2")
    trained(experiment, 0)
    write_text(evaluated(trained(experiment, 1), 1800).provenance, "{")
    assert told(experiment, t0="done", t1="trained").startswith("forecast: 2 trials × 0.5 h ")
    evaluated(trained(experiment, 1), 3600)
    assert told(experiment, t0="done", t1="trained").startswith("forecast: 2 trials × 1.5 h ")


def test_a_forecast_reads_a_few_files_however_many_trials_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, other = load("seed=" + ",".join(map(str, range(60)))), load("optim.lr=1", "seed=0,1,2,3")
    for index in range(59):
        trained(experiment, index)
    for index in range(4):
        trained(other, index)
    read: list[Path] = []
    monkeypatch.setattr(module, "read_json", lambda path: read.append(path) or read_json(path))
    done = {f"t{i}": "done" for i in range(59)}
    assert "(from 24 past trials on NVIDIA H100)" in told(experiment, **done)
    assert len(read) == 2 * 24
    read.clear()
    edited = load("optim.lr=2", "seed=" + ",".join(map(str, range(60))))
    stale = {f"t{i}": "stale" for i in range(60)}  # each has an earlier form, and none a folder
    assert "(from 24 past trials on" in told(edited, **stale) and len(read) == 2 * 24
    read.clear()
    assert "(from 3 past trials on" in told(load("experiment=new")) and len(read) == 2 * 3


# ---------------------------------------------------------------- trials of a job task
@pytest.mark.parametrize(
    ("seconds", "overrides", "sizes"),
    [
        (60, (), ((20, 1), (5, 1))),
        (60, ("launch.task_minutes=5",), ((5, 5),)),
        (60, ("resources.train.time=00:10:00",), ((5, 5),)),  # half of the walltime
        (1201, (), ((1, 25),)),
        (1, (), ((25, 1),)),
    ],
)
def test_a_job_task_trains_as_many_trials_as_the_forecast_lets_it(
    seconds: float, overrides: tuple[str, ...], sizes: tuple[tuple[int, int], ...]
) -> None:
    trained(load("seed=99"), seconds=seconds)
    experiment = load(f"seed={','.join(map(str, range(25)))}", *overrides)
    assert job_task_sizes(experiment, experiment.trials) == sizes


def test_a_job_task_has_no_more_trials_than_its_evaluation_has_time_for() -> None:
    evaluated(trained(load("seed=99"), seconds=1), seconds=100)
    experiment = load("seed=0,1,2,3,4,5,6", "resources.evaluate.time=00:10:00")
    assert job_task_sizes(experiment, experiment.trials) == ((3, 2), (1, 1))


def test_without_a_past_trial_what_is_cheap_shares_a_job_task_and_what_may_not_be_has_its_own() -> None:
    """A head on frozen features by its epochs; a tail by nothing."""
    frozen = load("seed=0,1,2,3,4", "train.epochs=300")
    assert job_task_sizes(frozen, frozen.trials) == ((4, 1), (1, 1))
    lora = load_experiment(PROJECT / "configs" / "beetles" / "lora.yaml", ("seed=0,1,2,3,4",))
    assert job_task_sizes(lora, lora.trials) == ((1, 5),)
    solved = load_experiment(PROJECT / "configs" / "butterflies" / "logistic.yaml", ("seed=0,1,2,3,4",))
    assert job_task_sizes(solved, solved.trials) == ((5, 1),)


@pytest.mark.parametrize(
    ("kind", "n", "together"),
    [
        ("svc", 2000, 5),
        ("svc", 20_000, 1),
        ("gaussian_process", 4000, 5),
        ("logistic", 20_000, 5),
        ("lda", None, 5),
        ("svc", None, 1),
    ],
)
def test_a_classifier_without_a_past_trial_is_cheap_by_how_many_images_it_is_fitted_to(
    monkeypatch: pytest.MonkeyPatch, kind: str, n: int | None, together: int
) -> None:
    """Where that cannot be told, twenty thousand."""
    monkeypatch.setattr("pipeline.launch.watching.forecast.known_number", lambda data: n)
    config = PROJECT / "configs" / "butterflies" / "logistic.yaml"
    experiment = load_experiment(config, (f"model.head.kind={kind}", "seed=0,1,2,3,4"))
    assert job_task_sizes(experiment, experiment.trials)[0][0] == together


def test_trials_of_unequal_length_are_dealt_by_their_own() -> None:
    """In their order: an expensive one does not keep cheap ones apart."""
    trained(load("seed=99"), seconds=60)
    experiment = load("train.epochs=10,30000", "seed=0,1,2")
    assert job_task_sizes(experiment, experiment.trials) == ((3, 1), (1, 3))
