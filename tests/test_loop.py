"""One step and one epoch of training, piece by piece: what reaches the model, at which rates, how large the step is."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.augment import Augment
from pipeline.config.resources import Resources
from pipeline.config.schedule import Plain
from pipeline.config.training import Optim, Select, Train
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import Interrupted, TakenOver
from pipeline.features.bank import TensorBank
from pipeline.models.learner import Answer, DomainEmbedding, Learner, Mix, make_mlp
from pipeline.models.metadata import Metadata, Names
from pipeline.signals import StopFlag
from pipeline.training import augmentation as aug
from pipeline.training import learner, loop
from pipeline.training.average import Average
from pipeline.training.checkpoint import Progress
from pipeline.training.loop import EpochLog
from pipeline.training.optimiser import make_optimizer
from pipeline.training.run import Run, Stop
from pipeline.training.samples import Samples, Targets
from pipeline.training.sets import Batch
from tests.small import named

N, WIDTH, N_DOMAINS, UNKNOWN = 24, 6, 3, 3
CPU = torch.device("cpu")


class Watched(Learner):
    """A model that keeps what it is called with, and the type it computes in."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head, domain = make_mlp([WIDTH, 8, 3]), DomainEmbedding(N_DOMAINS, WIDTH)
        super().__init__(nn.Identity(), head, domain, normalize=True, n_targets=3)
        self.calls: list[tuple[Tensor, Tensor, Mix | None]] = []
        self.computed_in: set[torch.dtype] = set()
        self.head[0].register_forward_hook(lambda *about: self.computed_in.add(about[2].dtype))

    def forward(self, features: Tensor, metadata: Metadata | None = None, mix: Mix | None = None) -> Answer:
        assert metadata is not None
        self.calls.append((features.detach().clone(), metadata.domain.clone(), mix))
        return super().forward(features, metadata, mix)

    def point(self, features: Tensor, domains: Tensor) -> Tensor:
        """What it says of images of these domains [B, n_targets]."""
        parameters: Tensor = self(features, of_domains(domains)).parameters
        return parameters[..., 0]


def of_domains(rows: Tensor) -> Metadata:
    return replace(Names().metadata({"domain": [None] * len(rows)}), domain=rows)


def make_config(**sections: Any) -> Config:
    train = sections.pop("train", Train(epochs=8, batch_size=10, precision="fp32"))
    return Config.model_validate(named({"experiment": "test", "train": train, **sections}))


@pytest.fixture
def samples() -> Samples:
    generator = torch.Generator().manual_seed(1)
    features, targets = torch.randn(N, WIDTH, generator=generator), torch.randn(N, 3, generator=generator)
    metadata = of_domains(torch.arange(N) % N_DOMAINS)
    return Samples(TensorBank(features, CPU, "device"), Targets(targets), metadata, np.arange(N) // 2, targets.shape[1])


def one_batch(model: Watched, samples: Samples, config: Config, epoch: int) -> tuple[Tensor, int]:
    streams = aug.epoch_streams(0, epoch, CPU)
    return learner.batch_loss(model, samples, Batch(torch.arange(10)), config, epoch, streams, start())


def lesson(model: Watched, samples: Samples, config: Config) -> learner.Lesson:
    return learner.Lesson(model, samples, samples, config, start())


def start() -> Tensor:
    """Group DRO's weights before the first step."""
    return torch.full((N_DOMAINS,), 1 / N_DOMAINS)


def make_run(tmp_path: Path, config: Config, flag: StopFlag | None = None) -> Run:
    return Run(TrialDir(tmp_path), "identity", "machine", config, Stop(flag or StopFlag(), lambda: True))


# ---------------------------------------------------------------- one batch
def test_without_augmentation_the_model_sees_the_batch_as_it_is(samples: Samples) -> None:
    model = Watched()
    loss, n = one_batch(model, samples, make_config(), 0)
    ((features, domains, mix),) = model.calls
    assert torch.equal(features, samples.bank.gather(torch.arange(10))) and mix is None and n == 10
    assert torch.equal(domains, samples.metadata.domain[:10])
    torch.testing.assert_close(loss, F.mse_loss(model.point(features, domains), samples.targets[:10]))


def test_mixup_reaches_features_targets_and_domain_embeddings_by_one_lambda(samples: Samples) -> None:
    """Mistake 4, in the training step itself: computed again by hand from the same stream."""
    model, config = Watched(), make_config(augment=Augment(mixup_alpha=0.4))
    loss, _ = one_batch(model, samples, config, 2)
    mix = aug.make_mix(10, 0.4, aug.epoch_streams(0, 2, CPU).choices)
    assert mix is not None and model.domain is not None
    features, targets, metadata = samples.select(torch.arange(10))
    embedding = F.normalize(mix(features), dim=-1) + mix(model.domain(metadata.domain, 10))
    torch.testing.assert_close(loss, F.mse_loss(model.head(embedding), mix(targets)))
    assert not torch.equal(model.calls[0][0], features), "the seed mixes nothing: the test would say nothing"


def test_a_batch_whose_domain_is_dropped_reaches_the_model_with_the_unknown_row(samples: Samples) -> None:
    model, config = Watched(), make_config(augment=Augment(domain_dropout=1.0))
    one_batch(model, samples, config, 0)
    assert model.calls[0][1].tolist() == [UNKNOWN] * 10


def test_dropped_images_take_features_targets_and_domains_with_them(samples: Samples) -> None:
    model, config = Watched(), make_config(augment=Augment(image_dropout=0.5))
    loss, n = one_batch(model, samples, config, 0)
    kept = Batch(torch.arange(10)).thinned(0.5, aug.epoch_streams(0, 0, CPU).choices).indices
    features, domains, _ = model.calls[0]
    assert 0 < n == len(kept) < 10 and torch.equal(features, samples.bank.gather(kept))
    assert torch.equal(domains, samples.metadata.domain[kept])
    torch.testing.assert_close(loss, F.mse_loss(model.point(features, domains), samples.targets[kept]))


def test_noise_is_added_to_the_features_alone(samples: Samples) -> None:
    model, config = Watched(), make_config(augment=Augment(noise=0.02))
    one_batch(model, samples, config, 0)
    added = model.calls[0][0] - samples.bank.gather(torch.arange(10))
    assert 0.01 < added.std() < 0.03 and torch.equal(model.calls[0][1], samples.metadata.domain[:10])


def test_progressive_augmentation_begins_with_none_and_grows(samples: Samples) -> None:
    full = Augment(image_dropout=0.5, mixup_alpha=0.4, domain_dropout=1.0, noise=0.5, warmup=0.5)
    model, config = Watched(), make_config(augment=full)
    one_batch(model, samples, config, 0)
    features, domains, mix = model.calls[0]
    assert torch.equal(features, samples.bank.gather(torch.arange(10))) and mix is None
    assert torch.equal(domains, samples.metadata.domain[:10])
    noise = {}
    only_noise = make_config(augment=Augment(noise=0.5, warmup=0.5))
    for epoch in (1, 4):
        one_batch(model, samples, only_noise, epoch)
        noise[epoch] = float((model.calls[-1][0] - samples.bank.gather(torch.arange(10))).std())
    assert noise[1] == pytest.approx(0.125, rel=0.3) and noise[4] == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize(("precision", "computed_in"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_bf16_computes_in_bf16_and_keeps_weights_and_loss_in_fp32(
    samples: Samples, precision: Any, computed_in: torch.dtype
) -> None:
    model = Watched()
    loss, _ = one_batch(model, samples, make_config(train=Train(precision=precision)), 0)
    loss.backward()
    assert model.computed_in == {computed_in} and loss.dtype == torch.float32
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_standardised_targets_are_learned_scaled_and_predicted_in_their_own_units(samples: Samples) -> None:
    model, config = Watched(), make_config()
    model.target_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    model.target_scale.copy_(torch.tensor([10.0, 0.5, 2.0]))
    far = replace(samples, targets=Targets(samples.targets.dense() * model.target_scale + model.target_mean))
    (scaled, _), (plain, _) = one_batch(model, far, config, 0), one_batch(Watched(), samples, config, 0)
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=0)
    features, _, metadata = far.select(torch.arange(4))
    predictions = model.predict(features, metadata).mean
    torch.testing.assert_close(model.standardize(predictions), model.point(features, metadata.domain))


# ---------------------------------------------------------------- one epoch
def test_an_epoch_sees_every_image_once_in_an_order_of_its_own(samples: Samples) -> None:
    seen = []
    for epoch in (0, 1):
        model, config = Watched(), make_config()
        loop.train_epoch(model, lesson(model, samples, config), make_optimizer(model, config), config, epoch, lambda share: None)
        rows = torch.cat([features for features, _, _ in model.calls])
        seen.append([int((samples.bank.gather(torch.arange(N)) == row).all(1).nonzero()) for row in rows])
        assert [len(features) for features, _, _ in model.calls] == [10, 10, 4]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(N)) and seen[0] != seen[1]


def test_clipping_bounds_the_gradient_of_every_step(samples: Samples) -> None:
    norms: dict[float | None, list[float]] = {}
    for clip in (None, 1e-3):
        model, config = Watched(), make_config(optim=Optim(clip=clip))
        optimizer, norms[clip] = make_optimizer(model, config), []

        def note(*_: Any, model: Watched = model, clip: float | None = clip) -> None:
            grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            norms[clip].append(float(torch.stack(grads).norm()))

        optimizer.register_step_pre_hook(note)
        loop.train_epoch(model, lesson(model, samples, config), optimizer, config, 0, lambda share: None)
    assert min(norms[None]) > 1e-2 and max(norms[1e-3]) <= 1.001e-3


class Waits(TorchDispatchMode):
    """Counts the operations after which a CPU knows what a GPU has computed, for which it must have waited."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func.name().split("::")[1].split(".")[0] in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "_unique2",
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sample", ["images", "groups"])
def test_an_epoch_waits_for_the_device_as_often_however_many_batches_it_has(samples: Samples, sample: Any) -> None:
    some: dict[str, Any] = {"mixup_alpha": 0.4} if sample == "images" else {}
    augment, waited = Augment(image_dropout=0.2, domain_dropout=0.5, noise=0.1, **some), {}
    for size in (2, 12):
        train = Train(batch_size=size, precision="fp32", sample=sample)
        model, config = Watched(), make_config(train=train, augment=augment, optim=Optim(clip=1.0, ema=0.9))
        optimizer, average, learnt = make_optimizer(model, config), Average(model, 0.9, {}, 0), lesson(model, samples, config)
        loop.train_epoch(model, learnt, optimizer, config, 0, lambda share: None)  # (the first looks at gradients)
        with Waits() as counted:
            loop.train_epoch(model, learnt, optimizer, config, 1, lambda share, average=average: average.update())
        waited[size] = counted.n
    assert waited[2] == waited[12] <= 3, waited


def test_each_epoch_trains_at_the_rate_of_its_schedule(samples: Samples, tmp_path: Path) -> None:
    schedule = Plain(kind="cosine", warmup=2, hold=1, floor=0.1)
    config = make_config(schedule=schedule, optim=Optim(lr=0.1))
    model = Watched()
    optimizer, progress, rates = make_optimizer(model, config), Progress(), []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append({group["lr"] for group in o.param_groups}))
    for _ in range(8):
        run = make_run(tmp_path, config)
        log = EpochLog(tmp_path / "m.jsonl", 0)
        average = Average(model, 0.0, {}, 0)
        loop.fit_epoch(loop.Descent(model, lesson(model, samples, config), run, optimizer, progress, average, log))
    peak = 0.1 * config.model.head.lr_scale  # type: ignore[union-attr]
    assert rates[::3] == [{schedule.rate(peak, config.optim.lr, epoch, 8)} for epoch in range(8)]
    assert len({rate for epoch in rates for rate in epoch}) > 4


def test_a_bar_follows_the_batches_and_is_told_the_figure_instead_of_a_line(
    samples: Samples, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, str]] = []
    config, model, progress = make_config(), Watched(), Progress()
    optimizer, run = make_optimizer(model, config), make_run(tmp_path, config)
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        log = EpochLog(tmp_path / "m.jsonl", progress.epoch, bar=lambda done, said: told.append((round(done, 3), said)))
        average = Average(model, 0.0, {}, 0)
        loop.fit_epoch(loop.Descent(model, lesson(model, samples, config), run, optimizer, progress, average, log))
    assert capsys.readouterr().out.count("epoch ") == 1
    assert [done for done, _ in told] == [0.333, 0.667, 1, 1, 1.333, 1.667, 2, 2]
    assert told[2][1] == "" and re.fullmatch(r"\w+ -?\d\.\d{3}, best -?\d\.\d{3} in epoch 0", told[3][1])


# ---------------------------------------------------------------- the best epoch
def kept(values: list[float | None], lower: bool) -> tuple[int, float | None, float]:
    progress = Progress()
    for epoch, value in enumerate(values):
        progress.keep_best(epoch, value, lower=lower, state={"weight": torch.tensor(float(epoch))})
    return progress.best_epoch, progress.best_metric, float(progress.best_state["weight"])


@pytest.mark.parametrize(
    ("values", "lower", "best"),
    [
        ([-7.0, -5.0, -6.0], False, 1),  # mistake 7: the sample code keeps nothing that is not above −1
        ([-1e9], False, 0),
        ([0.1, 0.3, 0.2], False, 1),
        ([0.9, 0.4, 0.5], True, 1),
        ([None, -3.0, None], False, 1),
        ([None, 3.0, 4.0], True, 1),
        ([None, None], False, 0),
        ([0.2, 0.2], False, 0),
    ],
)
def test_the_best_epoch_is_kept_however_bad_it_is(values: list[float | None], lower: bool, best: int) -> None:
    assert kept(values, lower) == (best, values[best], best)


def test_an_error_is_chosen_by_its_smallest_value_and_r2_by_its_largest(samples: Samples, tmp_path: Path) -> None:
    for metric in ("r2", "MAE"):
        config = make_config(select=Select(metric=metric), optim=Optim(lr=0.05))
        progress = learner.fit(Watched(), samples, samples, make_run(tmp_path / metric, config)).progress
        lines = (tmp_path / metric / "metrics.jsonl").read_text().splitlines()
        values = [json.loads(line)[f"val/{metric}"] for line in lines]
        chosen = max(values) if metric == "r2" else min(values)
        assert progress.best_metric == pytest.approx(chosen, abs=1e-6) and len(set(values)) == 8


# ---------------------------------------------------------------- checkpoints, and ending early
def test_a_checkpoint_is_written_when_so_many_seconds_or_epochs_have_passed() -> None:
    now = time.monotonic()

    def due(epochs_done: int, saved: float, **resources: Any) -> bool:
        return loop._checkpoint_is_due(make_config(resources=Resources.model_validate(resources)), epochs_done, saved)

    assert due(1, now - 301) and not due(1, now - 10)
    assert due(1, now - 10, checkpoint_seconds=5) and due(1, now, checkpoint_seconds=0)
    short = {"checkpoint_seconds": 300, "train": {"time": "00:05:00"}}
    assert due(1, now - 61, **short) and not due(1, now - 59, **short), "a job of five minutes is warned before they are over"
    assert not due(1, now - 61, checkpoint_seconds=300)
    assert [due(epoch, now, checkpoint_epochs=3) for epoch in range(1, 7)] == [False, False, True, False, False, True]


def test_a_trial_that_another_job_has_taken_over_is_left_to_it(samples: Samples, tmp_path: Path) -> None:
    config = make_config()
    run = Run(TrialDir(tmp_path), "identity", "machine", config, Stop(StopFlag(), lambda: False))
    with pytest.raises(TakenOver, match="taken this trial over"):
        learner.fit(Watched(), samples, samples, run)
    assert not TrialDir(tmp_path).checkpoint.exists()


def test_told_to_stop_in_the_last_epoch_it_ends_as_if_it_had_not_been(samples: Samples, tmp_path: Path) -> None:
    config, flag = make_config(train=Train(epochs=1, precision="fp32")), StopFlag()
    flag.signal, flag._since = 15, time.monotonic()
    assert learner.fit(Watched(), samples, samples, make_run(tmp_path, config, flag)).progress.epoch == 1
    longer = make_config(train=Train(epochs=2, precision="fp32"))
    with pytest.raises(Interrupted):
        learner.fit(Watched(), samples, samples, make_run(tmp_path / "longer", longer, flag))
