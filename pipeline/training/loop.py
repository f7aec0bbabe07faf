"""Gradient training of one trial: epochs over resident features, the best epoch kept, checkpoints, early stopping."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from pipeline.amounts import parse_time
from pipeline.config.trial import Config
from pipeline.disk.writing import write_text
from pipeline.errors import Interrupted, WorkError
from pipeline.models.base import Model
from pipeline.models.learner import load_trained_state, trained_state
from pipeline.progress import epochs as shown_epochs
from pipeline.streams import print_line
from pipeline.training import augmentation as aug
from pipeline.training.average import Average
from pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.training.optimiser import make_optimizer, set_rates, without_gradient
from pipeline.training.processes import ALONE, Processes
from pipeline.training.run import Run
from pipeline.training.tracking import Tell, tracked

B = TypeVar("B")


class Lesson(Protocol[B]):
    """What is learnt from, whatever it is: batches of it, their loss, and by what it is known how much has been learnt."""

    log_weights: Float[Tensor, " domains"]
    """What losses bring up to date in place from batch to batch, and a checkpoint keeps (group DRO's weights)."""

    def batches(self, streams: aug.Streams) -> tuple[int, Iterable[B]]:
        """One pass over what is learnt from: how many batches it has, and these."""

    def loss(self, batch: B, epoch: int, streams: aug.Streams) -> tuple[Tensor, int]:
        """The loss of one augmented batch, and how many samples it is the mean of."""

    def validate(self) -> tuple[float | None, float]:
        """On validation, the selection metric (None where it is not defined) and the mean loss."""

    def told(self) -> dict[str, float]:
        """What else there is to tell of the epoch that is done, by name."""


def descend(model: Model, lesson: Lesson[Any], run: Run) -> Progress:
    """Train `model` in place and leave it with the weights of the epoch that `select` says.

    Raises WorkError for a loss that is not finite or a parameter without a gradient, Interrupted when told to stop.
    """
    with begun(model, lesson, run) as descent:
        while descent.goes_on():
            fit_epoch(descent)
    return descent.ended()


@dataclass
class Descent:
    """A training that is under way."""

    model: Model
    lesson: Lesson[Any]
    run: Run
    optimizer: Optimizer
    progress: Progress
    average: Average
    log: EpochLog | None
    saved: float = field(default_factory=time.monotonic)
    """When its last checkpoint was written, or it began."""

    def goes_on(self) -> bool:
        """Whether there is another epoch: a better one may still come while the encoder is held, and for `patience` epochs
        without one behind that."""
        train, progress = self.run.config.train, self.progress
        patience = math.inf if train.patience is None else train.patience
        waits = progress.epoch - 1 - max(progress.best_epoch, train.held_epochs - 1) < patience
        return progress.epoch < train.epochs and waits

    def begin_epoch(self) -> None:
        """Set what holds for an epoch."""
        config, epoch = self.run.config, self.progress.epoch
        set_rates(self.optimizer, config, epoch, self.progress.validation_losses)
        self.model.held = epoch < config.train.held_epochs

    def after_step(self, share: float) -> None:
        """Of the epoch `share` is done. Raises Interrupted if its end must not be waited for."""
        self.average.update()
        self.run.stop.check_batch()
        if self.log:
            self.log.show(self.progress.epoch + share)

    def end_epoch(self, loss: float, of_batches: Float[Tensor, " batches"], started: float) -> None:
        """Validate, remember the weights if they are the best, write the epoch's line, and a checkpoint if it is time. Raises
        Interrupted when told to stop."""
        run, progress = self.run, self.progress
        metric = self._choose()
        progress.epoch, seconds = progress.epoch + 1, time.monotonic() - started
        progress.seconds += seconds
        if self.log:
            self._tell(self.log, loss, of_batches, metric, seconds)
        told_to_stop = run.stop.check_epoch(run.trial) and progress.epoch < run.config.train.epochs
        if run.processes.is_main and (told_to_stop or _checkpoint_is_due(run.config, progress.epoch, self.saved)):
            save_checkpoint(run.trial, run.identity, self.model, self.optimizer, progress)
            run.after_checkpoint()
            self.saved = time.monotonic()
        if told_to_stop:
            raise Interrupted(f"{run.trial.path}: told to stop; the checkpoint is written, run it again to go on")

    def _choose(self) -> float | None:
        """The epoch's figure on validation; its weights are remembered if they are to be kept."""
        run, progress = self.run, self.progress
        with self.average.applied():
            metric, validation_loss = _validated(self.lesson, run.processes)
            progress.validation_losses.append(validation_loss)
            if run.config.select.epoch == "last":
                progress.keep(progress.epoch, metric, trained_state(self.model))
            else:
                state = trained_state(self.model)
                progress.keep_best(progress.epoch, metric, lower=run.choice.lower_is_better, state=state)
        progress.average, progress.averaged = self.average.state, self.average.steps
        return metric

    def _tell(
        self, log: EpochLog, loss: float, of_batches: Float[Tensor, " batches"], metric: float | None, seconds: float
    ) -> None:
        """A line of metrics.jsonl."""
        progress, choice = self.progress, self.run.choice
        known = {"epoch": progress.epoch - 1, "phase": "head" if self.model.held else "all"}
        rates = {"train/lr": max(group["lr"] for group in self.optimizer.param_groups)}
        scores = {"val/loss": progress.validation_losses[-1], f"val/{choice.metric}": metric, "seconds": seconds}
        # Of a frozen encoder there are hundreds of epochs of thousands of batches.
        batches = {"train/loss_batches": of_batches.tolist()} if self.run.config.model.tunes_towers else {}
        log.write(known | {"train/loss": loss} | rates | scores, {**self.lesson.told(), **batches})
        log.show(progress.epoch, _said(choice.metric, metric, progress))

    def ended(self) -> Progress:
        """Leave the model with the weights that are kept."""
        load_trained_state(self.model, self.progress.best_state)
        return self.progress


@contextmanager
def begun(model: Model, lesson: Lesson[Any], run: Run, one_of_several: bool = False) -> Iterator[Descent]:
    """A training as far as its checkpoint says; `one_of_several` shows no bar."""
    optimizer = make_optimizer(model, run.config)
    progress = _begun(model, optimizer, run)
    average = Average(model, run.config.optim.ema, progress.average, progress.averaged)
    if len(progress.domain_log_weights):
        lesson.log_weights = progress.domain_log_weights
    progress.domain_log_weights = lesson.log_weights
    with _log(run, progress.epoch, one_of_several) as log:
        yield Descent(model, lesson, run, optimizer, progress, average, log)


@contextmanager
def _log(run: Run, epochs_done: int, one_of_several: bool) -> Iterator[EpochLog | None]:
    """Where the main process writes of each epoch."""
    if not run.processes.is_main:
        yield None
        return
    bar = nullcontext() if one_of_several else shown_epochs(run.config.train.epochs, epochs_done)
    with tracked(run.config, run.trial) as tell, bar as show:
        yield EpochLog(run.trial.metrics, epochs_done, tell, show, run.say)


def _begun(model: Model, optimizer: Optimizer, run: Run) -> Progress:
    """How far the run is, `model` and `optimizer` in that state: of several processes the main one puts aside what is no use, and
    the others read what it has read."""
    load = partial(load_checkpoint, run, model, optimizer)
    progress = run.processes.main_first(load)
    (epoch,) = run.processes.from_main(lambda: [progress.epoch])
    if epoch != progress.epoch:
        raise WorkError(f"{run.trial.resume_state}: the processes of this training see different checkpoints: run it again")
    return progress


def fit_epoch(descent: Descent) -> None:
    """Train for one epoch, validate, remember the weights if they are the best, and write the epoch's line."""
    started, run = time.monotonic(), descent.run
    descent.begin_epoch()
    model, lesson, optimizer, epoch = descent.model, descent.lesson, descent.optimizer, descent.progress.epoch
    learnt = train_epoch(model, lesson, optimizer, run.config, epoch, descent.after_step, run.processes)
    descent.end_epoch(*learnt, started)


def _said(name: str, metric: float | None, progress: Progress) -> str:
    """How well the last epoch did, and the best one."""
    told = ["undefined" if value is None else f"{value:.3f}" for value in (metric, progress.best_metric)]
    return f"{name} {told[0]}, best {told[1]} in epoch {progress.best_epoch}"


def _validated(lesson: Lesson[Any], processes: Processes) -> tuple[float | None, float]:
    """What `lesson.validate` says in the main process: all have to choose and to stop alike."""

    def numbers() -> tuple[float, float]:
        metric, loss = lesson.validate()
        return math.nan if metric is None else metric, loss

    metric, loss = processes.from_main(numbers)
    return None if math.isnan(metric) else metric, loss


def train_epoch(
    model: Model,
    lesson: Lesson[Any],
    optimizer: Optimizer,
    config: Config,
    epoch: int,
    after_step: Callable[[float], None],
    processes: Processes = ALONE,
) -> tuple[float, Float[Tensor, " batches"]]:
    """One pass over what is learnt from; returns the mean loss, and each batch's. `after_step` is given
    the share of it that is done, and may raise to end it early."""
    streams = aug.epoch_streams(config.seed, epoch, next(model.parameters()).device, processes.number)
    losses, counts, several = [], [], config.train.accumulate
    model.train()
    n_batches, batches = lesson.batches(streams)
    for number, batch in enumerate(batches):
        if config.schedule.per == "step":
            set_rates(optimizer, config, epoch + number / n_batches, ())
        loss, count = lesson.loss(batch, epoch, streams)
        losses.append(loss.detach())
        counts.append(count)
        if several == 1:
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        else:
            _accumulate(model, optimizer, loss, counts, several, number + 1 == n_batches)
        if epoch in (0, config.train.held_epochs) and number == 0:  # better to stop at once
            check_gradients(model)
        if len(counts) % several and number + 1 < n_batches:
            continue
        processes.add_gradients(model.parameters())
        if config.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), config.optim.clip)
        optimizer.step()
        after_step((number + 1) / n_batches)
    of_batches = torch.stack(losses)
    return mean_loss(of_batches, counts, epoch), of_batches


def _accumulate(model: Model, optimizer: Optimizer, loss: Tensor, counts: Sequence[int], several: int, is_last: bool) -> None:
    """Add a batch's gradients to those of the step; with its last one they are those of all its images' mean loss."""
    begins, ends = (len(counts) - 1) % several == 0, len(counts) % several == 0 or is_last
    if begins:
        optimizer.zero_grad(set_to_none=True)
    (loss * counts[-1]).backward()
    if ends:
        images = sum(counts[(len(counts) - 1) // several * several :])
        torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], float(images))


def check_gradients(model: Model) -> None:
    if names := list(without_gradient(model, model.held)):
        raise WorkError(f"no gradient reaches {len(names)} trainable parameters, they would never learn: {', '.join(names[:8])}")


class EpochLog:
    """metrics.jsonl: one line per epoch; lines after the checkpoint that a run resumes from are dropped."""

    def __init__(
        self,
        path: Path,
        n_epochs_done: int,
        tell: Tell = lambda values, epoch: None,
        bar: Callable[[float, str], None] | None = None,
        say: Callable[[str], None] = print_line,
    ) -> None:
        """`tell` is told each line's values too, `say` the line; `bar` shows a person how far the training is."""
        self.path, self.tell, self.bar, self.say, self.said = path, tell, bar, say, ""
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(lines[:n_epochs_done]))

    def write(self, values: Mapping[str, float | str | None], more: Mapping[str, float | list[float]]) -> None:
        """Append one epoch (what is not finite is null in JSON), and say it, but for `more`; who watches a bar is not told so
        much."""
        rounded = {name: _rounded(value) for name, value in {**values, **more}.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(rounded) + "\n")
        if self.bar is None or not sys.stdout.isatty():
            self.say("  ".join(f"{name} {rounded[name]}" for name in values))
        self.tell(rounded, int(rounded["epoch"] or 0))

    def show(self, done: float, said: str | None = None) -> None:
        """To who watches, how many epochs are done, and what is said of the last one."""
        self.said = self.said if said is None else said
        if self.bar:
            self.bar(done, self.said)


def _rounded(value: float | str | list[float] | None) -> Any:
    """As it is written: six decimals, and nothing of what is not finite; a rate of a millionth is not 0."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if not isinstance(value, float):
        return value
    return (round(value, 6) or float(f"{value:.6g}")) if math.isfinite(value) else None


def mean_loss(losses: Float[Tensor, " batches"], counts: list[int], epoch: int) -> float:
    """Weighted mean over batches of unequal size. Read once per epoch: asking each batch would make the GPU wait."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        raise WorkError(
            f"the training loss became {losses[bad[0]].item()} in epoch {epoch}, batch {int(bad[0])} (both counted from 0). "
            "Lower optim.lr, set optim.clip=1, or train.precision=fp32."
        )
    weights = torch.tensor(counts, dtype=losses.dtype, device=losses.device)
    return float((losses * weights).sum() / weights.sum())


def _checkpoint_is_due(config: Config, epochs_done: int, saved: float) -> bool:
    resources, age = config.resources, time.monotonic() - saved
    by_epochs = resources.checkpoint_epochs is not None and epochs_done % resources.checkpoint_epochs == 0
    # A short job would end before its first checkpoint, and begin again at the same place.
    return by_epochs or age >= min(resources.checkpoint_seconds, parse_time(resources.train.time) / 5)
