"""`carabid doctor`: what would fail on this cluster, found before anything is queued. Loads no torch.

`CHECKS` is the list of what is checked, in the order in which it is reported. A check yields lines; one that raises
UserError, WorkError or OSError has failed with that message, and the others are made all the same.
"""

from __future__ import annotations

import math
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from pipeline.amounts import parse_memory
from pipeline.cluster import STAGES, Profile
from pipeline.config import Job, Resources
from pipeline.errors import UserError, WorkError
from pipeline.experiment import Experiment, Trial
from pipeline.launch import estimates, probe, site, slurm
from pipeline.launch.manifest import Manifest, preview_manifest, sharing_features
from pipeline.launch.plan import missing_trials
from pipeline.launch.submit import Request, needs_extraction
from pipeline.layout import features_root, trained_root
from pipeline.records import known_data, known_weights, weights_signature
from pipeline.sources import open_source

KEYS = (
    (r"policy|limits", ("qos", "account", "time", "mem")),
    (r"(?i)account", ("account", "partition")),
    (r"(?i)partition", ("partition",)),
    (r"(?i)qos", ("qos",)),
    (r"(?i)feature", ("constraint",)),
    (r"(?i)time limit", ("time",)),
    (r"(?i)gres|generic resource", ("gpu_type", "gpus_per_node")),
    (r"(?i)memory", ("mem",)),
    (r"", ("partition", "constraint", "gpu_type", "gpus_per_node", "cpus_per_task", "mem", "time")),
)
"""What sbatch says → the keys that it is about; the first that matches."""
FULL = 0.8
"""From this share of a disk or of a memory on, what fits may not fit."""
CLOCK_SECONDS = 5
"""Clocks further apart are worth a word."""
TEMPORARY = 2 * 10**9
"""Bytes of room for temporary files below which there is a word: libraries compile and unpack there."""


@dataclass(frozen=True)
class Line:
    """One finding: what was looked at, how it stands, and what to do where it is not well."""

    verdict: Literal["ok", "warn", "FAIL", "skip"]
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<6}{self.what}: {' '.join(self.text.split())}"


@dataclass
class Context:
    """What is checked, and what an earlier check has found out for a later one."""

    experiment: Experiment
    profile: Profile
    look: bool = True
    """Whether to run a small job on a node."""
    patience: float = 120
    """Seconds that this job may wait for a free node."""
    seen: probe.Seen | None = None
    nodes: Sequence[site.Nodes] = field(default_factory=list)

    @cached_property
    def trials(self) -> list[Trial]:
        """What a submission would queue now; all trials where that is nothing."""
        return missing_trials(self.experiment) or self.experiment.trials

    @cached_property
    def manifest(self) -> Manifest:
        return preview_manifest(self.experiment, self.trials, Request(self.profile).terms())

    @property
    def resources(self) -> Resources:
        return self.experiment.config.resources

    @property
    def local(self) -> bool:
        return self.profile.scheduler == "local"

    @property
    def no_slurm(self) -> str:
        """Why Slurm is not asked; empty where it is."""
        if self.local:
            return "stages run on this machine"
        return "" if shutil.which("sbatch") else "there is no sbatch here: run this on the cluster's login node"

    @property
    def fetch(self) -> str:
        """The command that brings data and weights."""
        return f"`{shlex.join(['carabid', 'fetch', str(self.experiment.source), *self.experiment.overrides])}`"

    def job(self, stage: str) -> Job:
        job: Job = getattr(self.resources, stage)
        return job


Check = Callable[[Context], Iterator[Line]]


def run(context: Context) -> Iterator[Line]:
    """All checks, one after another; a line as soon as it is known."""
    for check in CHECKS:
        what = check.__name__.removeprefix("check_")
        try:
            if check in OF_SLURM and context.no_slurm:
                yield Line("skip", what, context.no_slurm)
            else:
                yield from check(context)
        except (UserError, WorkError, OSError) as error:
            yield Line("FAIL", what, str(error))


# ---------------------------------------------------------------- what Slurm says
def check_partitions(context: Context) -> Iterator[Line]:
    """Each stage's partition exists and is up, and has nodes with what the stage asks for."""
    context.nodes = site.partitions()
    for stage in STAGES:
        job, what = context.job(stage), f"partition of {stage}"
        if found := site.misfit(job, context.nodes):
            key, why = found
            yield Line("FAIL", what, f"{why}. Change resources.{stage}.{key} (it is {getattr(job, key)})")
            continue
        nodes = site.nodes_for(job, context.nodes)
        names, n = ", ".join(dict.fromkeys(node.partition for node in nodes)), sum(node.n for node in nodes)
        if usable := sum(node.n for node in nodes if node.usable):
            yield Line("ok", what, f"{names}, {usable} of {n} nodes in use or free")
        else:
            yield Line(
                "warn", what, f"all {n} nodes of {names} are down or drained: jobs will wait (`sinfo -R` says why)"
            )


def check_scripts(context: Context) -> Iterator[Line]:
    """Slurm would queue each stage's script as it stands (`sbatch --test-only`); dependencies have no ids yet."""
    first = {stage.kind: stage for stage in reversed(slurm.chain(context.manifest))}
    for kind in STAGES:
        ((_, script),) = slurm.scripts(context.manifest, [replace(first[kind], after=())])
        if why := slurm.refusal(script):
            yield Line("FAIL", f"script of {kind}", f"{why}. {advice(why, kind, context.job(kind))}")
        else:
            yield Line("ok", f"script of {kind}", "Slurm would queue it")


def advice(message: str, stage: str, job: Job) -> str:
    """The keys that a refusal of sbatch is about."""
    keys = next(keys for pattern, keys in KEYS if re.search(pattern, message))
    given = ", ".join(f"resources.{stage}.{key} ({getattr(job, key) or 'not set'})" for key in keys)
    return f"Check {given} in the YAML or the cluster profile"


def check_limits(context: Context) -> Iterator[Line]:
    """How many arrays a submission comes to, and whether I may have as many jobs queued."""
    stages = slurm.chain(context.manifest)
    counts, tasks = Counter(stage.kind for stage in stages), sum(len(stage.indices) for stage in stages)
    size = context.manifest.array_size
    words = ", ".join(f"{kind} {n}" for kind, n in counts.items())
    yield Line(
        "ok", "arrays", f"{len(context.trials)} trials, at most {size} tasks an array: {words}; {tasks} jobs in all"
    )
    limit = site.max_submitted()
    if limit is not None and tasks > limit:
        yield Line(
            "warn",
            "jobs",
            f"you may have {limit} queued: submit the grid in parts, or with --pack, which needs fewer tasks",
        )


# ---------------------------------------------------------------- folders, data, disk
def check_paths(context: Context) -> Iterator[Line]:
    """Results and features can be written from here."""
    config = context.experiment.config
    for name, folder in (("trained", trained_root(config)), ("features", features_root(config))):
        if why := probe.try_folder(folder):
            todo = f"Set paths.{name} or CARABID_ROOT to a folder that you may write to and that nodes see"
            yield Line("FAIL", f"{name}/", f"{folder} cannot be written to: {why}. {todo}")
        else:
            yield Line("ok", f"{name}/", f"{folder} can be written to")


def check_cache(context: Context) -> Iterator[Line]:
    """Data and weights are on this machine, so that nodes without internet find them."""
    groups = [sharing[0].config for sharing in sharing_features(context.trials)]
    for config in {config.data.source: config for config in groups}.values():
        here = open_source(config.data).is_here()
        yield _cached(context, f"data {config.data.source}", here, known_data(config) is not None)
    for config in {config.backbone: config for config in groups}.values():
        name = "pixels" if config.backbone.kind == "pixels" else config.backbone.name
        here = weights_signature(config.backbone) is not None
        yield _cached(context, f"weights {name}", here, known_weights(config) is not None)


def _cached(context: Context, what: str, here: bool, known: bool) -> Line:
    if not here:
        return Line("FAIL", what, f"not on this machine. Run {context.fetch} here, where there is internet")
    if not known:
        return Line(
            "warn", what, f"here, but never read whole, so it may be incomplete. Run {context.fetch} before jobs do"
        )
    return Line("ok", what, "here, and read whole before")


def check_disk(context: Context) -> Iterator[Line]:
    """Room for what is to be written: features that are not there yet, and a model for each trial."""
    features = models = 0
    for sharing in sharing_features(context.trials):
        config = sharing[0].config
        weights, data = known_weights(config), known_data(config)
        if weights is None or data is None:
            yield Line("skip", "disk", f"sizes are known once {context.fetch} has run")
            return
        features += estimates.features_bytes(config, weights, data.n) if needs_extraction(sharing) else 0
        models += sum(estimates.model_bytes(trial.config, weights) for trial in sharing)
    config = context.experiment.config
    yield _room("features", features_root(config), features)
    yield _room("trained", trained_root(config), models)


def _room(name: str, folder: Path, needed: int) -> Line:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    text = f"about {_gb(needed)} to be written, {_gb(free)} free in {there}"
    if needed <= FULL * free:
        return Line("ok", f"disk for {name}/", text)
    todo = f"Make room there, or set paths.{name} to another disk"
    return Line("FAIL" if needed > free else "warn", f"disk for {name}/", f"{text}. {todo}")


def _gb(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


# ---------------------------------------------------------------- a node
def check_node(context: Context) -> Iterator[Line]:
    """What a small job sees on a node of the training's: Python, GPU, folders, data, clock. Here where stages run here."""
    config = context.experiment.config
    trained = trained_root(config)
    if not context.look:
        yield Line("skip", "node", "--no-probe: nothing was run on a node")
        return
    if context.local:
        context.seen = probe.look_here(config, trained)
    else:
        try:
            context.seen, at_work = probe.look_there(context.manifest, trained, context.patience)
        except probe.NotStarted as error:
            yield Line("skip", "node", f"{error}. Try again with more --patience, or later")
            return
        yield _clock(context.seen, at_work, time.time())
    yield from _node_lines(context, context.seen)


def _node_lines(context: Context, seen: probe.Seen) -> Iterator[Line]:
    absent = [name for name, version in seen.versions.items() if version is None]
    if absent:
        yield Line(
            "FAIL", "node", f"{seen.host}: not installed there: {', '.join(absent)}. Mend the profile's environment"
        )
    else:
        yield Line("ok", "node", f"{seen.host}: Python {seen.python}, torch {seen.versions['torch']}")
    yield _device(context, seen)
    if seen.unwritable:
        yield Line(
            "FAIL", "node: features/", f"cannot be written to from {seen.host}: {seen.unwritable}. Set paths.features"
        )
    for name in seen.missing:
        todo = "Keep it (HF_HOME, torch's and open_clip's caches) in a folder that nodes see, and fetch it there"
        yield Line("FAIL", f"node: {name}", f"not seen from {seen.host}. {todo}: {context.fetch}")
    verdict: Literal["ok", "warn"] = "ok" if seen.temporary_free >= TEMPORARY else "warn"
    todo = "" if verdict == "ok" else ". Set TMPDIR in the cluster profile's `variables` to a larger disk"
    yield Line(verdict, "node: temporary files", f"{_gb(seen.temporary_free)} free in {seen.temporary}{todo}")


def _device(context: Context, seen: probe.Seen) -> Line:
    asked = 0 if context.local else context.job("train").gpus_per_node
    if seen.device_error:
        return Line("FAIL", "node: device", seen.device_error)
    if asked and seen.gpu_memory is None:
        todo = "Set resources.train.gpus_per_node=0 (of extract and evaluate too), or device=auto"
        return Line("warn", "node: device", f"a GPU is asked for, and training would leave it idle. {todo}")
    kind = f"{seen.device}, {_gb(seen.gpu_memory)}" if seen.gpu_memory else f"no GPU ({seen.device})"
    return Line("ok", "node: device", f"{kind}; torch computes on it")


def _clock(seen: probe.Seen, earliest: float, latest: float) -> Line:
    """The node's time lay between these two of ours, if the clocks agree."""
    ahead, behind = seen.time - latest, earliest - seen.time
    if max(ahead, behind) <= CLOCK_SECONDS:
        return Line("ok", "node: clock", f"as here, within {math.ceil(latest - earliest) + CLOCK_SECONDS} s")
    off = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
    why = "Leases do not compare clocks, but times in logs do not fit, nor do tools that compare files' times: tell the site"
    return Line("warn", "node: clock", f"{off} this machine's. {why}")


# ---------------------------------------------------------------- memory
def check_memory(context: Context) -> Iterator[Line]:
    """The method fits the GPU, by an estimate; where a stage asks for none, the memory that it asks for."""
    needs: dict[str, list[int]] = {"extract": [], "train": []}
    room = {stage: _memory(context, stage) for stage in needs}
    for sharing in sharing_features(context.trials):
        weights, data = known_weights(sharing[0].config), known_data(sharing[0].config)
        if weights is None or data is None:
            yield Line("skip", "memory", f"it can be estimated once {context.fetch} has run")
            return
        needs["extract"].append(estimates.extraction_bytes(sharing[0].config, weights))
        largest = room["train"][0][1] if room["train"][0] else None
        needs["train"] += [estimates.training_bytes(t.config, weights, data.n, largest) for t in sharing]
    for stage, needed in needs.items():
        yield _fits(stage, max(needed), *room[stage])


def _memory(context: Context, stage: str) -> tuple[tuple[int, int] | None, str]:
    """Bytes that a stage has, at least and at most, and of what; None where that is not known."""
    job, seen = context.job(stage), context.seen
    if seen and (context.local or (stage == "train" and seen.gpu_memory)):
        size = seen.gpu_memory or seen.memory
        return (size, size), f"{seen.device}" if seen.gpu_memory else "this machine"
    if context.local:
        return None, "this machine (--probe tells)"
    if not job.gpus_per_node:
        size = parse_memory(job.mem) << 20
        return ((size, size) if size else None), f"resources.{stage}.mem"
    kinds = {kind for node in site.nodes_for(job, context.nodes) for kind in node.gpus}
    kind = job.gpu_type or (kinds.pop() if len(kinds) == 1 else "")
    return estimates.gpu_memory(kind), kind or f"the GPU (resources.{stage}.gpu_type names none)"


def _fits(stage: str, needed: int, room: tuple[int, int] | None, of: str) -> Line:
    what, about = f"memory of {stage}", f"about {_gb(needed)} by estimate"
    if room is None:
        return Line("skip", what, f"{about}; how much there is of {of} is not known: compare it yourself")
    low, high = room
    text = f"{about}, {of} has {_gb(low)}{f' to {_gb(high)}' if high != low else ''}"
    if needed <= FULL * low:
        return Line("ok", what, text)
    smaller = "resources.extract_batch" if stage == "extract" else "train.batch_size or model.encoder.blocks"
    todo = f"Lower {smaller}, or ask for more with resources.{stage}"
    return Line("FAIL" if needed > high else "warn", what, f"{text}. {todo}")


CHECKS: tuple[Check, ...] = (
    check_partitions,
    check_scripts,
    check_limits,
    check_paths,
    check_cache,
    check_disk,
    check_node,
    check_memory,
)
OF_SLURM: tuple[Check, ...] = (check_partitions, check_scripts, check_limits)
