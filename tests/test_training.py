"""Training on real features of the tiny backbones: what is learned, kept, resumed, and refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.training import Select
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT, TrialDir, experiment_dir
from pipeline.disk.writing import read_json
from pipeline.errors import Interrupted, MissingFeatures, UserError, WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.models.saved import make_model
from pipeline.reporting.results import collect
from pipeline.signals import StopFlag
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs, make_facts
from pipeline.training import learner, loop
from pipeline.training.checkpoint import remove_checkpoint
from pipeline.training.samples import predict
from tests.conftest import Assets, carabid

pytestmark = pytest.mark.jobs

MakeConfig = Callable[..., Config]
QUICK_LORA = ("model.encoder.r=4", "model.encoder.alpha=4", "model.encoder.blocks=2")


class StopAfter(StopFlag):
    """A flag that is raised when it has been looked at `n` times: once an epoch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def asked(self) -> bool:
        self.left -= 1
        return self.left <= 0

    def overdue(self) -> bool:
        return False


@pytest.fixture
def trained(config_of: MakeConfig) -> Callable[..., tuple[Config, TrialDir]]:
    """Extract and train one trial; `trained("baseline", "train.epochs=2")`."""

    def make(method: str, *overrides: str) -> tuple[Config, TrialDir]:
        config = config_of(method, *overrides)
        trial = experiment_dir(config).trial("trial")
        extract.ensure(config)
        train.run(config, trial)
        return config, trial

    return make


def test_the_best_epoch_is_kept_even_if_its_r2_is_negative(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    """Mistake 7: the sample code saves nothing unless R² exceeds −1."""
    _, trial = trained("frozen", "train.epochs=3", "data.permute_targets=true", "optim.lr=1e-6")
    record = read_json(trial.trained)
    assert record["best_metric"] < 0 and trial.model.exists()  # (far below −1: tests/test_loop.py)


def test_the_saved_model_is_the_best_epoch_and_not_the_last(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    config, trial = trained("frozen", "train.epochs=30", "optim.lr=0.03")
    record = read_json(trial.trained)
    lines = [json.loads(line) for line in trial.metrics.read_text().splitlines()]
    assert record["best_epoch"] < 29
    assert record["best_metric"] == pytest.approx(max(line["val/r2"] for line in lines), abs=1e-5)
    results = evaluate.run(
        config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": "validation"})}), trial
    )
    assert results["summary"]["r2"] == pytest.approx(record["best_metric"], abs=1e-5)


def test_early_stopping_ends_after_patience_epochs_without_a_better_one(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    _, trial = trained("frozen", "train.epochs=60", "optim.lr=0.03", "train.patience=2")
    record = read_json(trial.trained)
    assert record["epochs"] - 1 - record["best_epoch"] == 2


def test_a_loss_that_is_not_finite_stops_with_epoch_and_batch(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=3", "optim.lr=1e30", "train.batch_size=16")
    extract.ensure(config)
    with pytest.raises(WorkError, match=r"epoch \d+, batch \d+"):
        train.run(config, experiment_dir(config).trial("trial"))


def test_a_parameter_without_gradient_stops_the_run(config_of: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake 3: what no gradient reaches would stay random for ever."""
    config = config_of("baseline", "train.epochs=1")
    extract.ensure(config)
    monkeypatch.setattr("pipeline.models.learner.DomainEmbedding.forward", lambda self, domains, n: 0)
    with pytest.raises(WorkError, match="no gradient reaches"):
        train.run(config, experiment_dir(config).trial("trial"))


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        _, trial = trained("augmentation", "train.epochs=2", f"seed={seed}", f"experiment={name}")
        files.append(trial.model.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize("residence", ["host", "mmap"])
def test_where_features_stay_does_not_change_the_result(trained: Callable[..., tuple[Config, TrialDir]], residence: str) -> None:
    models = []
    for place in ("device", residence):
        _, trial = trained("combined", *QUICK_LORA, "train.epochs=1", f"resources.residence={place}", f"experiment={place}")
        models.append((trial.model.read_bytes(), (trial.adapter / "adapter_model.safetensors").read_bytes()))
    assert models[0] == models[1]


def test_no_checkpoint_and_no_lease_is_left_when_training_is_done(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    _, trial = trained("frozen", "train.epochs=3", "resources.checkpoint_epochs=1")
    assert not trial.checkpoint.exists() and not trial.lease.exists()
    assert not list(trial.path.rglob("*.tmp"))


def test_what_killed_writers_left_is_removed_by_the_next_attempt(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=1")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    for left in (".model.safetensors.0123456789ab.tmp", "checkpoint/.state.pt.0123456789ab.tmp", ".adapter.0.tmp/x"):
        (trial.path / left).parent.mkdir(parents=True, exist_ok=True)
        (trial.path / left).write_text("half of it")
    train.run(config, trial)
    assert not list(trial.path.rglob("*.tmp")) and trial.model.exists()


def test_a_checkpoint_that_another_job_removes_at_the_same_time_is_gone_and_no_error(tmp_path: Path) -> None:
    trial = TrialDir(tmp_path)
    for _ in range(50):
        trial.checkpoint.mkdir()
        for i in range(20):
            (trial.checkpoint / str(i)).touch()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(remove_checkpoint, [trial] * 4))
        assert not trial.checkpoint.exists()


def test_a_trained_trial_is_found_trained_without_loading_its_backbone(
    trained: Callable[..., tuple[Config, TrialDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A requeued job of many trials goes over those that are done: BioCLIP-2 is not read again for each."""
    config, trial = trained("finetune", "train.epochs=1")
    before, loaded = trial.trained.stat().st_mtime_ns, []
    monkeypatch.setattr("pipeline.stages.inputs.load_backbone", loaded.append)
    train.run(config, trial)
    assert loaded == [] and trial.trained.stat().st_mtime_ns == before


@pytest.mark.parametrize("method", ["frozen", "pixels"])
def test_an_epoch_that_cannot_be_chosen_by_r2_is_refused_before_training(root: Path, tmp_path: Path, method: str) -> None:
    table = numbers_csv(tmp_path, 0)
    rows = [line.rpartition(",")[0] + ",1" if ",validation," in line else line for line in table.read_text().splitlines()]
    table.write_text("\n".join(rows) + "\n")
    overrides = (f"data.source={table}", "device=cpu", "backbone={kind: pixels, size: 2}", *CSV)
    config = load_experiment(f"configs/beetles/{method}.yaml", overrides).config
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    with pytest.raises(UserError, match=r"the 10 validation groups are too much alike for R².*select\.metric=MAE"):
        train.run(config, trial)
    by_error = config.model_copy(update={"select": Select(metric="MAE")})
    train.run(by_error, trial)
    assert read_json(trial.trained)["best_metric"] > 0


def test_a_trained_trial_is_not_trained_again(
    trained: Callable[..., tuple[Config, TrialDir]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, trial = trained("frozen", "train.epochs=1")
    before = trial.trained.stat().st_mtime_ns
    monkeypatch.setattr(learner, "fit", lambda *_: pytest.fail("trained again"))
    train.run(config, trial)
    assert trial.trained.stat().st_mtime_ns == before


OF_SETS = (
    "train.sample=groups", "train.max_images=3", "train.batch_size=16", "model.pool=attention", "risk.kind=group_dro",
    "risk.step=0.1", "model.species_embedding=true", "augment.mixup_alpha=0", "augment.species_dropout=0.3", "loss.kind=crps",
)  # fmt: skip


@pytest.mark.parametrize("more", [(), OF_SETS], ids=["images", "sets"])
def test_told_to_stop_it_writes_a_checkpoint_and_goes_on_to_the_same_end(config_of: MakeConfig, more: tuple[str, ...]) -> None:
    overrides = (*QUICK_LORA, *SLOW, "model.encoder.dropout=0.1", "train.epochs=4", *more)
    ends = []
    for name, stop_after in (("undisturbed", None), ("stopped", 2)):
        config = config_of("combined", *overrides, f"experiment={name}")
        trial = experiment_dir(config).trial("trial")
        extract.ensure(config)
        if stop_after:
            with pytest.raises(Interrupted):
                train.run(config, trial, StopAfter(stop_after))
            assert trial.checkpoint.exists()
        train.run(config, trial)
        ends.append(end_of(trial))
        assert read_json(trial.trained)["best_epoch"] == 3  # after the stop, or the saved bits would say nothing of it
    assert ends[0] == ends[1]


SLOW = ("optim.lr=1e-5",)
"""So slow that the last epoch is the best: what is saved has then gone through every interruption."""


def end_of(trial: TrialDir) -> tuple[bytes, bytes, list[dict[str, float]]]:
    """What two runs that should be equal must share: the model's bytes, the adapter's, and every epoch's figures."""
    lines = [json.loads(line) for line in trial.metrics.read_text().splitlines()]
    figures = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    return trial.model.read_bytes(), (trial.adapter / "adapter_model.safetensors").read_bytes(), figures


def test_a_damaged_checkpoint_is_kept_aside_and_training_starts_again(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=2")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    trial.checkpoint.mkdir(parents=True)
    (trial.checkpoint / "state.pt").write_bytes(b"not a checkpoint")
    train.run(config, trial)
    assert read_json(trial.trained)["epochs"] == 2


def test_a_checkpoint_of_other_targets_is_not_resumed(config_of: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("frozen", "train.epochs=2", "resources.checkpoint_epochs=1")
    other = config_of("frozen", "train.epochs=2", "data.permute_targets=true")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    with pytest.raises(Interrupted):
        train.run(config, trial, StopAfter(1))
    train.run(other, trial)
    assert "other targets" in capsys.readouterr().out


def test_with_other_threads_a_run_goes_on_and_says_so(
    config_of: MakeConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("frozen", "train.epochs=3")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    with pytest.raises(Interrupted):
        train.run(config, trial, StopAfter(1))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    try:
        train.run(config, trial)
    finally:
        torch.set_num_threads(1)
    assert "the last bits may differ" in capsys.readouterr().out
    provenance = read_json(trial.trained)["provenance"]
    assert provenance["resumed"] == 1 and len(provenance["computed_on"]) == 2


def test_an_epoch_too_long_to_end_is_left_and_the_last_checkpoint_stands(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=3")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    with pytest.raises(Interrupted):
        train.run(config, trial, StopAfter(1))
    before = (trial.checkpoint / "state.pt").read_bytes()
    flag = StopFlag()
    flag.signal = 15  # long ago
    with pytest.raises(Interrupted, match="too long"):
        train.run(config, trial, flag)
    assert (trial.checkpoint / "state.pt").read_bytes() == before


def test_changed_targets_are_noticed_the_trial_is_trained_again_and_old_results_go(root: Path, tmp_path: Path) -> None:
    table = numbers_csv(tmp_path, 0)
    config = load_experiment("configs/beetles/pixels.yaml", (f"data.source={table}", "device=cpu", *CSV)).config
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    train.run(config, trial)
    evaluate.run(config, trial)
    first = trial.model.read_bytes()
    numbers_csv(tmp_path, 1)
    extract.ensure(config)
    with pytest.raises(WorkError, match="targets, groups or splits changed"):
        evaluate.run(config, trial)
    train.run(config, trial)
    assert trial.model.read_bytes() != first
    assert not any(path.exists() for path in (trial.results, trial.predictions, trial.provenance, trial.card))
    evaluate.run(config, trial)


def test_results_of_data_that_have_changed_since_are_stale_and_done_again(root: Path, tmp_path: Path) -> None:
    """Corrected targets must not leave the old figures standing as done; a file that was only touched costs no training."""
    table = numbers_csv(tmp_path, 0)
    command = ("configs/beetles/pixels.yaml", f"data.source={table}", "device=cpu", *CSV)
    carabid("submit", *command, "--cluster", "local", root=root)
    assert carabid("plan", *command, root=root).stdout.startswith("done")
    (results,) = root.glob("trained/*/*/results.json")
    before, model = results.read_text(), (results.parent / "model.safetensors").stat().st_mtime_ns
    os.utime(table)
    said = carabid("plan", *command, root=root).stdout
    assert said.startswith("stale") and "the data's files have changed since it was evaluated" in said
    assert "forecast: 1 trial × " in said and "(from 1 past trial on CPU)" in said
    carabid("submit", *command, "--cluster", "local", root=root)
    assert (results.parent / "model.safetensors").stat().st_mtime_ns == model
    assert carabid("plan", *command, root=root).stdout.startswith("done")
    numbers_csv(tmp_path, 1)
    carabid("submit", *command, "--cluster", "local", root=root)
    assert json.loads(results.read_text())["y"]["RMSE"] != json.loads(before)["y"]["RMSE"]
    table.unlink()
    assert carabid("plan", *command, root=root).stdout.startswith("done"), "data that are not here tell nothing"


def test_groups_in_two_splits_are_told_in_the_results(root: Path, tmp_path: Path) -> None:
    table = numbers_csv(tmp_path, 0)
    lines = table.read_text().splitlines()
    shared = [f"{line},{1 if i in (1, 3) else i + 100}" for i, line in enumerate(lines[1:])]
    lines = [f"{lines[0]},group", *(line.replace(",1,", ",3,") if line.endswith(",1") else line for line in shared)]
    table.write_text("\n".join(lines) + "\n")
    columns = "data.columns={image: name, id: name, group: group, domain: null, species: null, site: null, date: null}"
    config = load_experiment(
        "configs/beetles/pixels.yaml", (f"data.source={table}", "device=cpu", columns, "data.targets=[y]")
    ).config
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    train.run(config, trial)
    (warning,) = (w for w in evaluate.run(config, trial)["summary"]["warnings"] if "not of new groups" in w)
    assert warning.startswith("1 group is in ")


# ---------------------------------------------------------------- files that somebody or something has damaged
def damaged_in_turn(trial: TrialDir) -> Iterator[tuple[Path, str]]:
    """One file of a trained LoRA trial after the other: damaged, cut short or gone."""
    for path in (trial.trained, trial.model, trial.adapter / "adapter_model.safetensors"):
        for content in (b"{", path.read_bytes()[:-10], None):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            yield path, "not evaluated" if path == trial.trained and content is None else "carabid train"


def test_a_damaged_model_is_named_by_evaluation_and_made_again_by_training(
    trained: Callable[..., tuple[Config, TrialDir]],
) -> None:
    config, trial = trained("lora", *QUICK_LORA, "train.epochs=1")
    end = end_of(trial)
    for path, words in damaged_in_turn(trial):
        with pytest.raises(WorkError, match=words):
            evaluate.run(config, trial)
        train.run(config, trial)
        assert end_of(trial) == end, path
        evaluate.run(config, trial)


def test_a_byte_that_changed_on_the_disk_is_not_learned_from(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=1")
    trial = experiment_dir(config).trial("trial")
    store = extract.ensure(config)
    content = bytearray(store.path(0).read_bytes())
    content[-1000] ^= 1
    store.path(0).write_bytes(content)
    with pytest.raises(MissingFeatures, match="damaged: run `carabid extract`"):
        train.run(config, trial)
    extract.run(config)
    train.run(config, trial)


CSV = (
    "data.columns={image: name, id: name, group: null, domain: null, species: null, site: null, date: null}",
    "data.targets=[y]",
)


def numbers_csv(folder: Path, seed: int) -> Path:
    """A CSV of 30 small images in three splits, whose target changes with the seed and whose images do not."""
    rng, rows = np.random.default_rng(0), ["name,split,y"]
    for i in range(30):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{('train', 'validation', 'test')[i % 3]},{i + 10 * seed * (i % 2)}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def test_the_validation_loss_is_a_mean_over_validation(config_of: MakeConfig) -> None:
    """Mistake 7: the sample code divides it by the training set's length."""
    config = config_of("frozen", "train.epochs=1")
    extract.ensure(config)
    inputs = load_inputs(config)
    facts = make_facts(inputs)
    model, device = make_model(config, facts, None), torch.device("cpu")
    validation = inputs.samples(facts, "validation", device)
    assert len(validation) != len(inputs.table("train"))
    _, loss, figures = learner.validate(model, validation, config)
    errors = predict(model, validation).mean - validation.truth
    assert loss == pytest.approx(float(np.square(errors).mean()), rel=1e-5)
    assert set(figures) == {f"r2_{target}" for target in config.data.targets}


@pytest.mark.parametrize(("n", "epochs"), [(2, 12), pytest.param(6, 40, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(assets: Assets, tmp_path: Path, n: int, epochs: int) -> None:
    """SIGKILL n times at seeded moments, checkpoints written after every epoch; all but one of them hit."""
    overrides = (*assets.overrides("combined"), *QUICK_LORA, *SLOW, "model.encoder.dropout=0.1", f"train.epochs={epochs}",
                 "train.batch_size=32", "resources.checkpoint_epochs=1")  # fmt: skip
    config = "configs/beetles/combined.yaml"
    ends = {}
    for name in ("undisturbed", "killed"):
        root = tmp_path / name
        carabid("extract", config, *overrides, root=root)
        if name == "killed":
            kills = kill_at_random(config, overrides, root, random.Random(7), n)
            assert kills >= n - 1
        carabid("train", config, *overrides, root=root)
        (trial,) = (root / "trained" / "beetles-combined").glob("*-????????")
        ends[name] = end_of(TrialDir(trial))
        record = read_json(trial / "trained.json")
        assert record["best_epoch"] == epochs - 1  # after every kill, or the saved bits would say nothing of them
        assert name == "undisturbed" or record["provenance"]["resumed"] >= n - 1
        assert not list(trial.rglob("*.tmp"))
    assert ends["undisturbed"] == ends["killed"]


def kill_at_random(config: str, overrides: tuple[str, ...], root: Path, rng: random.Random, n: int) -> int:
    """Start training n times and kill it a random while after its next checkpoint, every other time while one is written."""
    kills = in_writing = 0
    for number in range(n):
        command = [sys.executable, "-m", "pipeline.cli", "train", config, *overrides]
        process = subprocess.Popen(
            command, cwd=PROJECT, env={**os.environ, "CARABID_ROOT": str(root)}, stdout=subprocess.DEVNULL, start_new_session=True
        )
        seen = checkpoint_time(root)
        while checkpoint_time(root) == seen and process.poll() is None:
            time.sleep(0.02)
        if number % 2:
            left = unfinished(root)
            while unfinished(root) <= left and process.poll() is None:
                pass
            in_writing += process.poll() is None
        else:
            time.sleep(rng.uniform(0, 0.25))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert in_writing >= n // 2
    return kills


def unfinished(root: Path) -> set[Path]:
    """Checkpoints that are being written, or whose writer was killed."""
    return set(root.glob("trained/*/*/checkpoint/.*.tmp"))


def checkpoint_time(root: Path) -> int:
    return max((p.stat().st_mtime_ns for p in root.glob("trained/*/*/checkpoint/state.pt")), default=0)


def test_training_is_torch_deterministic(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    trained("frozen", "train.epochs=1")
    assert torch.are_deterministic_algorithms_enabled()


def test_the_epoch_log_drops_lines_after_the_checkpoint_it_resumes_from(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = loop.EpochLog(path, 0)
    for epoch in range(4):
        log.write({"epoch": epoch}, {})
    loop.EpochLog(path, 2).write({"epoch": 2}, {})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_an_epoch_log_that_a_disk_has_spoilt_is_gone_on_with(tmp_path: Path) -> None:
    (path := tmp_path / "metrics.jsonl").write_bytes(b'{"epoch": 0}\n\x9c\xff\n')
    loop.EpochLog(path, 1).write({"epoch": 1}, {})
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [0, 1]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 64)), min_size=1, max_size=20))
def test_the_mean_loss_weighs_batches_by_their_size(batches: list[tuple[float, int]]) -> None:
    """Mistake 7: unequal batches averaged as if they were equal."""
    losses, counts = torch.tensor([b[0] for b in batches]), [b[1] for b in batches]
    assert loop.mean_loss(losses, counts, 0) == pytest.approx(
        np.average([b[0] for b in batches], weights=counts), rel=1e-4, abs=1e-5
    )


def test_ridge_picks_its_penalty_on_validation_and_predicts_in_target_units(
    trained: Callable[..., tuple[Config, TrialDir]],
) -> None:
    config, trial = trained("pixels")
    results = evaluate.run(config, trial)
    assert results["summary"]["mean_predictor"]["r2"] is not None
    inputs = load_inputs(config)
    assert results["n_images"] == len(inputs.positions("test"))


def test_every_method_config_trains_and_evaluates_on_the_tiny_backbones(assets: Assets, root: Path) -> None:
    for path in sorted((PROJECT / "configs" / "beetles").glob("*.yaml")):
        method = path.stem
        if method == "silhouettes":  # of other data
            continue
        more = QUICK_LORA if method in ("lora", "combined") else ()
        more += () if method in ("climatology", "mean_rgb", "metadata", "pixels") else ("train.epochs=1",)
        trial = load_experiment(f"configs/beetles/{method}.yaml", (*assets.overrides(method), *more)).trials[0]
        folder = experiment_dir(trial.config).trial(trial.name)
        extract.ensure(trial.config)
        train.run(trial.config, folder)
        assert evaluate.run(trial.config, folder)["split"] == "test", method


def test_a_damaged_config_is_written_again_by_training_as_results_say(trained: Callable[..., tuple[Config, TrialDir]]) -> None:
    config, trial = trained("frozen", "train.epochs=1")
    evaluate.run(config, trial)
    whole = trial.config.read_text()
    trial.config.write_text(": [")
    (row,) = collect([experiment_dir(config)])
    assert row.state == "failed" and "`carabid train`" in row.reason
    train.run(config, trial)
    assert trial.config.read_text() == whole and collect([experiment_dir(config)])[0].state == "done"
