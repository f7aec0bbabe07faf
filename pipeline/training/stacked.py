"""Trials of one shape trained together: heads on the same frozen features, their parameters stacked, so that a step of all takes
about as many operations as one of a single trial. Each keeps what it has alone: its rate, seed, augmentation, early stop,
checkpoint, lines of metrics.jsonl; what it draws is the same to the bit, what it learns but for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pipeline.config.head import Head
from pipeline.config.identity import flatten, science
from pipeline.config.loss import Loss
from pipeline.config.trial import Config
from pipeline.device import to_device
from pipeline.models.learner import Learner
from pipeline.models.metadata import Metadata
from pipeline.training import augmentation as aug
from pipeline.training import learner
from pipeline.training.loop import Descent, begun, check_gradients, mean_loss
from pipeline.training.optimiser import set_rates, step_together
from pipeline.training.risk import start_log_weights
from pipeline.training.run import Fitted, Run, set_novelty, set_scales
from pipeline.training.samples import Samples

FREE = ("experiment", "seed", "optim", "schedule", "select", "train.epochs", "train.samples", "train.patience", "augment.noise",
        "augment.mixup_alpha", "augment.domain_dropout", "augment.species_dropout", "augment.warmup")  # fmt: skip
"""Keys, and blocks, in which trials of one shape may differ."""
FEWEST, NARROW = 4, 50_000
"""On a CPU, trials of a stack at least, and parameters of each at most: of fewer, or of wider ones, whose step takes longer to
compute than to call, nothing is gained."""
Outcome = Fitted | Exception
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A trial that is ready to be fitted."""

    model: Any
    """A `Model`; where it is stacked a `Learner`."""
    train: Samples
    validation: Samples
    run: Run

    def fit(self) -> Fitted:
        """By itself."""
        fitted: Fitted = self.run.config.model.head.fit(self.model, self.train, self.validation, self.run)
        return fitted


def shape(config: Config) -> str | None:
    """Equal for trials that can be trained together; None for one that can not, because something of it would not be the same or
    is not made for it."""
    model, train, augment = config.model, config.train, config.augment
    plain = config.risk.kind == "mean" and model.outputs.kind == "each"
    kinds = _can_be_stacked(model.head) and _can_be_stacked(config.loss) and plain
    frozen = not model.encoder.learns and config.backbone.views.are_plain and not config.data.auxiliary
    of_images = train.sample == "images" and train.accumulate == 1 and train.processes == 1 and not train.head_first
    # (trackers have one run at a time in a process)
    if not (kinds and frozen and of_images) or augment.image_dropout or augment.images.is_on() or config.tracking.kind != "none":
        return None
    told = sorted((key, value) for key, value in flatten(science(config)).items() if not key.startswith(FREE))
    return repr((config.device, told))


def _can_be_stacked(kind: Head | Loss) -> bool:
    """Whether its own class says so: one that a lab derives from it may do something else."""
    return bool(vars(type(kind)).get("can_be_stacked"))


def pays(prepared: Prepared, n: int) -> bool:
    """Whether `n` trials of the shape of this one are faster together; on a CPU in fp32 alone, where they become what they are
    alone: bf16 rounds by so much that an epoch later they are others."""
    if prepared.train.targets.device.type != "cpu":
        return n > 1
    if prepared.run.config.train.precision != "fp32":
        return False
    trained = sum(parameter.numel() for parameter in prepared.model.parameters() if parameter.requires_grad)
    return n >= FEWEST and trained <= NARROW


def outcome_of(work: Callable[[], T]) -> T | Exception:
    """What work comes to: its result, or what it raised."""
    try:
        return work()
    except Exception as error:
        return error


# ---------------------------------------------------------------- epochs
def fit_together(trials: Sequence[Prepared], ended: Callable[[int, Outcome, float], None]) -> None:
    """Fit trials of one shape in place, together. Each goes on until it ends or fails, the others then go on without it; `ended`
    is told at once of which, by its place, how it went or what it raised, and its share of the seconds."""
    going: dict[int, Descent] = {}
    shares = dict.fromkeys(range(len(trials)), 0.0)
    with ExitStack() as logs:
        for place, trial in enumerate(trials):
            begins = outcome_of(partial(_begun, trial, logs))
            if isinstance(begins, Exception):
                ended(place, begins, 0.0)
            else:
                going[place] = begins
        while going:
            for place in [place for place, descent in going.items() if not descent.goes_on()]:
                ended(place, outcome_of(partial(_ended, trials[place], going.pop(place))), shares[place])
            started, places = time.monotonic(), list(going)
            errors = _epoch(list(going.values()))
            for place in places:
                shares[place] += (time.monotonic() - started) / len(places)
            for place, error in zip(places, errors, strict=True):
                if error is not None:
                    del going[place]
                    ended(place, error, shares[place])


def _begun(trial: Prepared, logs: ExitStack) -> Descent:
    model, train, run = trial.model, trial.train, trial.run
    set_scales(model, train, run)
    lesson = learner.Lesson(model, train, trial.validation, run.config, start_log_weights(train.metadata.domain))
    return logs.enter_context(begun(model, lesson, run, one_of_several=True))


def _ended(trial: Prepared, descent: Descent) -> Fitted:
    progress = descent.ended()
    set_novelty(trial.model, trial.train, trial.validation)
    return Fitted(progress)


def _epoch(descents: Sequence[Descent]) -> list[Exception | None]:
    """Train each for an epoch, together, and let each end it by itself; of each what it raised, if anything."""
    if not descents:
        return []
    started = time.monotonic()
    for descent in descents:
        descent.begin_epoch()
        descent.model.train()
    trained = outcome_of(partial(_train, descents))
    if isinstance(trained, Exception):
        return [trained] * len(descents)
    losses, counts = trained
    share = (time.monotonic() - started) / len(descents)

    def end(descent: Descent, of_batches: Float[Tensor, " batches"]) -> None:
        began = time.monotonic() - share
        descent.end_epoch(mean_loss(of_batches, counts, descent.progress.epoch), of_batches, began)

    ended = [outcome_of(partial(end, *each)) for each in zip(descents, losses.unbind(1), strict=True)]
    return [each if isinstance(each, Exception) else None for each in ended]


def _train(descents: Sequence[Descent]) -> tuple[Float[Tensor, "batches trials"], list[int]]:
    """An epoch's steps: each batch's losses, and how many images it has. Raises what ends all trials: that no gradient reaches a
    parameter, that the process must end at once."""
    losses, counts = [], []
    with stacked(descents) as stack:
        of_trials = [each.lesson.batches(streams) for each, streams in zip(descents, stack.streams, strict=True)]
        n_batches = of_trials[0][0]
        for number, batches in enumerate(zip(*(batches for _, batches in of_trials), strict=True)):
            losses.append(stack.step(torch.stack([batch.indices for batch in batches]), number / n_batches))
            counts.append(len(batches[0].indices))
            for descent in descents:
                if descent.progress.epoch == 0 and number == 0:
                    check_gradients(descent.model)
                descent.after_step((number + 1) / n_batches)
    stack.note(counts)
    return torch.stack(losses), counts


# ---------------------------------------------------------------- steps
@contextmanager
def stacked(descents: Sequence[Descent]) -> Iterator[_Stack]:
    """The models' parameters in one tensor for each name, of which theirs are views within: who changes one changes both."""
    named = [dict(descent.model.named_parameters()) for descent in descents]
    parameters = {name: torch.stack([each[name].detach() for each in named]).requires_grad_() for name in named[0]}
    for name, together in parameters.items():
        for each, own in zip(named, together.detach().unbind(), strict=True):
            each[name].data = own
    try:
        yield _Stack(descents, named, parameters)
    finally:
        for parameter in (parameter for each in named for parameter in each.values()):
            parameter.data, parameter.grad = parameter.data.clone(), None


class _Scored(nn.Module):
    """A model, and the losses of what it says."""

    def __init__(self, model: Learner, mixes_embedding: bool) -> None:
        super().__init__()
        self.model, self.mixes_embedding = model, mixes_embedding

    def forward(
        self, features: Tensor, targets: Tensor, names: Sequence[Tensor] | None, mixed: Sequence[Any] | None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " targets"]]:
        """The mean over images, and the sum of each target's."""
        metadata, mix = Metadata(*names) if names else None, aug.Mixing(*mixed) if mixed else None
        encoded = self.model.encode(features)
        answer = self.model.answer(mix(encoded) if mix and self.mixes_embedding else encoded, metadata, mix)
        losses, each = self.model.losses(answer, targets)
        return losses.mean(), losses.new_zeros(0) if each is None else each.sum(0)


class _Stack:
    """Trials in one epoch."""

    def __init__(
        self, descents: Sequence[Descent], named: Sequence[dict[str, nn.Parameter]], parameters: dict[str, Tensor]
    ) -> None:
        self.descents, self.named, self.parameters = descents, named, parameters
        self.lessons: list[Any] = [descent.lesson for descent in descents]
        self.models: list[Learner] = [lesson.model for lesson in self.lessons]
        self.configs = [descent.run.config for descent in descents]
        self.samples: Samples = self.lessons[0].train
        self.device = self.samples.targets.device
        self.streams = [aug.epoch_streams(each.run.config.seed, each.progress.epoch, self.device) for each in descents]
        self.shares = [
            aug.strength(c.augment, d.progress.epoch, c.train.epochs) for c, d in zip(self.configs, descents, strict=True)
        ]
        self.parts: list[Float[Tensor, "trials targets"]] = []
        of_models = [dict(model.named_buffers()) for model in self.models]
        self.buffers = {f"model.{name}": torch.stack([each[name] for each in of_models]) for name in of_models[0]}
        self.scored = _Scored(self.models[0], self.configs[0].augment.mixup.of == "embedding")

    def step(self, rows: Int64[Tensor, "trials images"], done: float) -> Float[Tensor, " trials"]:
        """Of each trial a step on its own images, `done` of the epoch; their losses."""
        for descent, config in zip(self.descents, self.configs, strict=True):
            if config.schedule.per == "step":
                set_rates(descent.optimizer, config, descent.progress.epoch + done, ())
        losses = self._losses(rows)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()), allow_unused=True)
        for name, gradient in zip(self.parameters, gradients, strict=True):
            # Adam's kernel takes it for laid out as the parameter is.
            of_trials = [None] * len(self.named) if gradient is None else gradient.contiguous().unbind()
            for each, own in zip(self.named, of_trials, strict=True):
                each[name].grad = own
        for each, config in zip(self.named, self.configs, strict=True):
            if config.optim.clip is not None:
                torch.nn.utils.clip_grad_norm_(each.values(), config.optim.clip)
        step_together([descent.optimizer for descent in self.descents])
        return losses.detach()

    def _losses(self, rows: Int64[Tensor, "trials images"]) -> Float[Tensor, " trials"]:
        mixed = self._draw_mixes(rows.shape[1])
        features, targets, metadata = self.samples.select(rows.flatten())
        features, targets = (each.unflatten(0, rows.shape) for each in (features, targets))
        names = self._draw_names(metadata, rows.shape)
        if mixed:
            targets = _mixed(targets, *mixed)
            features = features if self.scored.mixes_embedding else _mixed(features, *mixed)
        parameters = {f"model.{name}": parameter for name, parameter in self.parameters.items()}
        given = self._noisy(features), targets, names, mixed
        dims = tuple(None if each is None else 0 for each in given)

        def score(parameters: Any, buffers: Any, *given: Any) -> Any:
            return functional_call(self.scored, (parameters, buffers), given)

        with learner.in_precision(self.configs[0], self.device):
            losses, of_targets = vmap(score, (0, 0, *dims))(parameters, self.buffers, *given)
        self.parts.append(of_targets.detach())
        return losses

    def _draw_mixes(self, n: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of each trial its shares and the order of its rows; None where none mixes. One that does not is mixed with nothing."""
        drawn = [
            aug.make_mix(n, share * config.augment.mixup_alpha, streams.choices, "cpu", config.augment.mixup)
            for share, config, streams in zip(self.shares, self.configs, self.streams, strict=True)
        ]
        if not any(drawn):
            return None
        mixes = [mix or aug.Mixing(1.0, 0.0, torch.arange(n)) for mix in drawn]
        shares = torch.tensor([(mix.share, mix.rest) for mix in mixes])
        orders = torch.stack([mix.order for mix in mixes])
        share, rest = to_device(shares, self.device).unbind(1)
        return share, rest, to_device(orders, self.device)

    def _draw_names(self, metadata: Metadata, size: Sequence[int]) -> tuple[Tensor, ...] | None:
        """What is told of each trial's images; None where the models read nothing of it."""
        if self.models[0].domain is None and self.models[0].species is None:
            return None
        n, of_trials = size[1], zip(self.models, self.configs, self.shares, self.streams, strict=True)
        drawn = [
            aug.drop_names(metadata[place * n : (place + 1) * n], model, config.augment, share, streams.choices)
            for place, (model, config, share, streams) in enumerate(of_trials)
        ]
        return tuple(torch.stack([getattr(each, field.name) for each in drawn]) for field in fields(Metadata))

    def _noisy(self, features: Float[Tensor, "trials images ..."]) -> Float[Tensor, "trials images ..."]:
        sds = [share * config.augment.noise for share, config in zip(self.shares, self.configs, strict=True)]
        if not any(sds):
            return features
        of_trials = zip(features, sds, self.streams, strict=True)
        return torch.stack([aug.add_noise(each, sd, streams.noise) for each, sd, streams in of_trials])

    def note(self, counts: Sequence[int]) -> None:
        """Tell each lesson its sums of each target's losses."""
        if not self.parts or not self.parts[0].shape[1]:
            return
        sums = torch.stack(self.parts)
        n = torch.tensor(counts, dtype=sums.dtype, device=sums.device)[:, None, None].expand(-1, sums.shape[1], 1)
        for lesson, parts in zip(self.lessons, torch.cat([sums, n], 2).unbind(1), strict=True):
            lesson.parts.extend(parts.unbind())


def _mixed(
    rows: Float[Tensor, "trials images ..."], shares: Tensor, rests: Tensor, orders: Int64[Tensor, "trials images"]
) -> Float[Tensor, "trials images ..."]:
    """As `augmentation.Mixing` mixes, of each trial."""
    trials, of_each = torch.arange(len(rows), device=rows.device)[:, None], (-1, *[1] * (rows.ndim - 1))
    return shares.view(of_each) * rows + rests.view(of_each) * rows[trials, orders]
