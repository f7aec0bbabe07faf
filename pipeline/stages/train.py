"""The training stage: one trial from cached features to `model.safetensors`, `adapter/` and `trained.json`."""

import io
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from pipeline.backbones import origins
from pipeline.config.identity import digest
from pipeline.config.trial import Config
from pipeline.device import choose_device, device_name, gpu_name, make_deterministic, set_threads
from pipeline.disk.attempts import Attempts, spent, this_attempt
from pipeline.disk.layout import TrialDir
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import loaded_code, provenance
from pipeline.disk.writing import sweep, write_table, write_text
from pipeline.errors import TakenOver, WorkError
from pipeline.experiments.reading import dump_config
from pipeline.metrics.groups import Prediction
from pipeline.models.base import Facts, Model
from pipeline.models.encoders import recompute
from pipeline.models.saved import make_model, read_trained, save_model, write_trained
from pipeline.signals import StopFlag
from pipeline.stages.inputs import Inputs, changed, identity, load_inputs, make_facts
from pipeline.stages.several import nothing_to_follow, together
from pipeline.stages.shared import Shared
from pipeline.streams import print_line
from pipeline.training.checkpoint import Progress, remove_checkpoint
from pipeline.training.process_ranks import Rank, launched
from pipeline.training.processes import joined
from pipeline.training.run import Fitted, Run, Stop
from pipeline.training.samples import Samples, predict
from pipeline.training.stacked import Prepared, fit_together, pays

Training = Generator[Prepared, Fitted | None, None]
"""One trial's training: it gives what is to be fitted. It is sent how that went, or thrown what it raised, if that was done
together with others; sent nothing it does it by itself. Then it goes on."""


def run(config: Config, trial: TrialDir, flag: StopFlag | None = None, shared: Shared | None = None) -> None:
    """Train one trial by itself. Raises what `training` raises."""
    finish(training(config, trial, flag or StopFlag(), shared))


def finish(training: Training) -> None:
    """Carry out one training. Raises what it raises."""
    (error,) = carry_out([training])
    if error is not None:
        raise error


def carry_out(trainings: Sequence[Training]) -> list[Exception | None]:
    """Carry out trainings of one shape, together where that is faster, else one after another; of each what it raised, if
    anything."""
    errors: list[Exception | None] = [None] * len(trainings)
    ready: dict[int, Prepared] = {}

    def ended(place: int, outcome: Fitted | Exception | None) -> None:
        errors[place] = _go_on(trainings[place], outcome)

    with ExitStack() as ends:
        for place, each in enumerate(trainings):
            ends.callback(each.close)
            try:
                prepared = next(each)
            except StopIteration:  # there was nothing to do
                continue
            except Exception as error:
                errors[place] = error
                continue
            if pays(prepared, len(trainings)):
                ready[place] = prepared
                prepared.run.wait()
            else:
                ended(place, None)
        _fit_all(ready, ended)
    return errors


def _fit_all(ready: Mapping[int, Prepared], ended: Callable[[int, Fitted | Exception | None], None]) -> None:
    """Fit these together; where they are too few for that (others were trained already), each is left to itself."""
    n = len(ready)
    if not ready or not pays(next(iter(ready.values())), n):
        for place, prepared in ready.items():
            prepared.run.go_on(0.0)
            ended(place, None)
        return
    # The same numbers but for rounding: who goes on with one of them alone is told.
    machines = {place: f"{each.run.machine}, {n} trials together" for place, each in ready.items()}
    stack = {place: replace(each, run=replace(each.run, machine=machines[place])) for place, each in ready.items()}
    places = list(stack)

    def left(i: int, outcome: Fitted | Exception, share: float) -> None:
        ready[places[i]].run.go_on(share)
        ended(places[i], outcome)

    fit_together(list(stack.values()), left)


def _go_on(training: Training, outcome: Fitted | Exception | None) -> Exception | None:
    """Send a training how its fit went; what it raises then."""
    try:
        training.throw(outcome) if isinstance(outcome, Exception) else training.send(outcome)
    except StopIteration:
        return None
    except Exception as error:
        return error
    raise AssertionError("a training is fitted once")


def training(
    config: Config, trial: TrialDir, flag: StopFlag, shared: Shared | None = None, say: Callable[[str], None] = print_line
) -> Training:
    """Train one trial, or go on where it was interrupted; nothing is done if it is trained already on the same data.

    Two jobs on one trial: the second waits for the first. Of several processes (`train.processes`) this is the main one.
    `shared` is what trials before it in this process have loaded; `say` is told of each epoch. Raises UserError, WorkError,
    Interrupted.
    """
    try:
        yield from _training(config, trial, flag, shared, say)
    finally:
        nothing_to_follow(config, trial)


def follow(config: Config, trial: TrialDir, flag: StopFlag, rank: Rank, store: Any) -> None:
    """Train the trial along with the main process, which alone writes. Raises UserError, WorkError, Interrupted."""
    device = choose_device(config.device, rank.local)
    set_threads(_sharing(config))
    with joined(rank, store, device) as group:
        with redirect_stderr(io.StringIO()):  # the main process says it
            inputs = load_inputs(config)
        table, stop = inputs.table("train"), Stop(flag, lambda: True, group)
        run = Run(trial, digest(identity(inputs)), "", config.for_images(len(table)), stop, table=table)
        _prepare(inputs, make_facts(inputs), run, device).fit()


def _sharing(config: Config) -> int:
    """How many processes share the CPUs that this one sees: of those that a launcher starts each is given its own."""
    return 1 if launched(config.train.processes) else config.train.processes


def _training(config: Config, trial: TrialDir, flag: StopFlag, shared: Shared | None, say: Callable[[str], None]) -> Training:
    started = time.monotonic()
    loaded_code()  # now: it may be edited while this runs
    write_text(trial.config, dump_config(config))
    inputs = load_inputs(config, shared)
    with Lease(trial.lease, config.resources.lease_seconds).hold(done=lambda: is_trained(trial, inputs)) as held:
        if held:
            try:
                _forget_outdated(trial)
                yield from _train(inputs, trial, Stop(flag, held.still_mine), started, say)
            except OSError as error:  # a successor clears away what we were writing
                if held.still_mine():
                    raise
                raise TakenOver(f"{trial.path}: another job has taken this trial over") from error
        else:
            print(f"{trial.path.name} is trained already", flush=True)
    remove_checkpoint(trial)
    trial.attempts.unlink(missing_ok=True)
    shutil.rmtree(trial.lease, ignore_errors=True)  # nobody claims it any more: waiters see that the trial is trained


def is_trained(trial: TrialDir, inputs: Inputs) -> bool:
    """Whether the folder holds a model, as it was written, of just this configuration, features, splits and targets."""
    try:
        return not changed(read_trained(trial), inputs)
    except FileNotFoundError:
        return False
    except WorkError as error:
        print(f"carabid: {error}", flush=True)
        return False


def _forget_outdated(trial: TrialDir) -> None:
    """A model that is trained again takes its results with it: they would stand beside another model."""
    if trial.trained.exists():
        why = "its configuration, features or targets have changed, or a file of its model is damaged"
        print(f"{trial.path.name}: {why}: trained again, results removed", flush=True)
    results = (trial.results, trial.predictions, trial.groups, trial.provenance, trial.card)
    for path in (trial.trained, *results, trial.validation, trial.interpolation, trial.frontier):
        path.unlink(missing_ok=True)
    model = (trial.model, trial.adapter, trial.text_adapter, trial.classifier, trial.validation)
    for path in (*model, trial.explained, trial.resume_state, trial.attempts):
        sweep(path)


def _train(inputs: Inputs, trial: TrialDir, stop: Stop, started: float, say: Callable[[str], None]) -> Training:
    config, name = inputs.config, digest(identity(inputs))
    n, table = config.train.processes, inputs.table("train")
    threads, device = set_threads(_sharing(config)), choose_device(config.device)
    attempts = Attempts(trial.attempts, name, this_attempt(gpu_name(device), gpus=n), started)
    machine = f"{device_name(device)}, {threads} threads" + (f", {n} processes" if n > 1 else "")
    run = Run(trial, name, machine, config.for_images(len(table)), stop, attempts.note, table, say, attempts.wait, attempts.go_on)
    with attempts.noted(stop.still_mine):
        facts = make_facts(inputs)
        with together(config, trial, device, stop.flag, follow) as processes:
            run = replace(run, stop=replace(stop, processes=processes))
            prepared = _prepare(inputs, facts, run, device)
            fitted = (yield prepared) or prepared.fit()
        calibrations = _calibrations(inputs, facts, prepared, fitted)
        save_model(prepared.model, facts, trial)
        write_trained(trial, _record(facts, inputs, fitted.progress, attempts) | {"calibration": calibrations})


def _calibrations(inputs: Inputs, facts: Facts, prepared: Prepared, fitted: Fitted) -> dict[str, Any]:
    """What calibrates the fitted model's forecasts, by the validation split; what it says of that is kept."""
    held_out = _held_out(prepared.model, prepared.validation, inputs, facts, fitted.left_out)
    if (table := inputs.task.validation_table(held_out)) is not None:  # for ensembles and exports
        write_table(prepared.run.trial.validation, table)
    learnt_from = inputs.task.training(inputs.dataset, inputs.table("train"))
    return inputs.task.calibrate(held_out, learnt_from, inputs.config.calibrate.kind)


def _prepare(inputs: Inputs, facts: Facts, run: Run, device: torch.device) -> Prepared:
    """A new model, and the splits that it is fitted to and chosen by."""
    make_deterministic()
    inputs.verify()
    model = make_model(inputs.config, facts, inputs.encoder_backbone, inputs.text_tower).to(device)
    if inputs.config.resources.gradient_checkpointing:
        recompute(model)
    train, validation = inputs.samples(facts, "train", device), inputs.samples(facts, "validation", device)
    trained = f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,} trained parameters"
    sizes = f"{len(train)} images, {len(validation)} for validation, {trained}"
    print(f"training {run.trial.path.name}: {sizes}, on {run.machine}", flush=True)
    return Prepared(model, train, validation, run)


def _held_out(
    model: Model, validation: Samples, inputs: Inputs, facts: Facts, left_out: Float64[np.ndarray, "images classes"] | None
) -> Any:
    """Images that the model was not fitted to, and what it says of them: those of validation, or, if it was fitted to these too,
    all of them, with what was said of each when it was `left_out`."""
    if left_out is None:
        said, table = predict(model, validation), inputs.table("validation")
    else:
        said = Prediction.of(left_out)
        table = pd.concat([inputs.table("train"), inputs.table("validation")])
    return inputs.task.predictions(table, inputs.dataset.truth.of(table), facts.targets, said)


def _record(facts: Facts, inputs: Inputs, progress: Progress, attempts: Attempts) -> dict[str, Any]:
    table = inputs.table("train")
    training = inputs.task.training(inputs.dataset, table)
    selected = {"selected_on": "validation" if inputs.config.select.folds is None else "cross-validation"}
    best = {"best_epoch": progress.best_epoch, "best_metric": progress.best_metric, "epochs": progress.epoch}
    of = {
        "train_domains": list(facts.names.domains),
        "train_means": training.means,
        "train_sds": training.sds,
        "n_train": len(table),
    }
    weights = origins(inputs.config.backbone, texts=inputs.texts is not None)
    runs = {
        "weights": weights,
        "training_seconds": round(progress.seconds, 2),
        "resumed": progress.restarts,
        "computed_on": progress.machines,
    }
    return identity(inputs) | selected | best | of | {"provenance": provenance(**spent(attempts.all()), **runs)}
