"""`carabid doctor`: what would fail on this cluster, found before anything is queued. Loads no torch.

`CHECKS` is the list of what is checked, in the order in which it is reported. A check yields lines; one that raises
UserError, WorkError or OSError has failed with that message, and the others are made all the same.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from pipeline.amounts import format_bytes
from pipeline.config.identity import towers_of
from pipeline.config.resources import MEMORY_KEYS, Job
from pipeline.data.sources import open_source
from pipeline.disk.layout import features_root, trained_root
from pipeline.errors import UserError, WorkError
from pipeline.experiments.cluster import STAGES
from pipeline.features.hashes import known_data, known_weights, weights_signature
from pipeline.features.text_hashes import known_text_weights
from pipeline.launch.doctor import capacity, probe
from pipeline.launch.doctor.findings import FETCH, Context, Finding
from pipeline.launch.manifest.manifest import sharing_features
from pipeline.launch.scheduler import site
from pipeline.launch.submitting import sbatch
from pipeline.launch.watching.preflight import copies, preflight

MORE_KEYS = ("nodelist", "exclude", "tmp", "licenses", "reservation", "sbatch")
USUAL_KEYS = {"partition", "account", "qos", "constraint", "gpu_type", "gpus_per_node", "cpus_per_task", "mem", "time"}
"""Keys that are worth a look where they are not set, too."""
Check = Callable[[Context], Iterator[Finding]]
KEYS = (
    (r"(?i)unrecognized|ambiguous|requires an argument|doesn't allow", ("sbatch",)),
    (r"(?i)reservation", ("reservation",)),
    (r"(?i)licen[sc]e", ("licenses",)),
    (r"(?i)mail", ("mail_type", "mail_user")),
    (r"(?i)node name", ("nodelist", "exclude")),
    (r"(?i)policy", ("qos", "account", "time", *MEMORY_KEYS)),
    (r"(?i)account", ("account", "partition")),
    (r"(?i)partition", ("partition",)),
    (r"(?i)qos", ("qos",)),
    (r"(?i)feature", ("constraint",)),
    (r"(?i)time limit", ("time",)),
    (r"(?i)gres|generic resource", ("gpu_type", "gpus_per_node")),
    (r"(?i)memory", MEMORY_KEYS),
    (r"", ("partition", "constraint", "gpu_type", "gpus_per_node", "cpus_per_task", *MEMORY_KEYS, "time", *MORE_KEYS)),
)
"""What sbatch says → the keys that it is about; the first that matches."""
CLOCK_SECONDS = 5
"""Clocks further apart are worth a word."""
TEMPORARY = 2 * 10**9
"""Bytes for temporary files below which there is a word: libraries compile and unpack there."""


def run(context: Context) -> Iterator[Finding]:
    """All checks, one after another; a line as soon as it is known."""
    for check in CHECKS:
        what = check.__name__.removeprefix("check_")
        try:
            if check in OF_SLURM and context.no_slurm:
                yield Finding("skip", what, context.no_slurm)
            else:
                yield from check(context)
        except (UserError, WorkError, OSError) as error:
            yield Finding("FAIL", what, str(error))


# ---------------------------------------------------------------- what Slurm says
def check_partitions(context: Context) -> Iterator[Finding]:
    """Each stage's partition exists and is up, and has nodes with what the stage asks for."""
    context.nodes = site.partitions()
    for stage in STAGES:
        job, what = context.job(stage), f"partition of {stage}"
        if found := site.misfit(job, context.nodes):
            key, why = found
            yield Finding("FAIL", what, f"{why}. Change resources.{stage}.{key} (it is {getattr(job, key) or 'not set'})")
            continue
        nodes = site.nodes_for(job, context.nodes)
        names, n = ", ".join(dict.fromkeys(node.partition for node in nodes)), sum(node.n for node in nodes)
        if usable := sum(node.n for node in nodes if node.usable):
            yield Finding("ok", what, f"{names}, {usable} of {n} nodes at work or free")
        else:
            yield Finding("warn", what, f"all {n} nodes of {names} are down or drained, jobs will wait: see `sinfo -R`")


def check_scripts(context: Context) -> Iterator[Finding]:
    """Slurm would queue each stage's script as it stands (`sbatch --test-only`); dependencies have no ids yet."""
    first = {stage.kind: stage for stage in reversed(sbatch.chain(context.manifest))}
    for kind in STAGES:
        ((_, script),) = sbatch.scripts(context.manifest, [replace(first[kind], after=())])
        if why := sbatch.refusal(script):
            yield Finding("FAIL", f"script of {kind}", f"{why}. {advice(why, kind, context.job(kind))}")
        else:
            yield Finding("ok", f"script of {kind}", "Slurm would queue it")


def advice(message: str, stage: str, job: Job) -> str:
    """The keys that a refusal of sbatch is about."""
    keys = next(keys for pattern, keys in KEYS if re.search(pattern, message))
    told = [key for key in keys if key in USUAL_KEYS or getattr(job, key)] or keys
    given = ", ".join(f"{key} ({getattr(job, key) or 'not set'})" for key in told)
    return f"Check resources.{stage} in the YAML or the cluster profile: {given}"


def check_limits(context: Context) -> Iterator[Finding]:
    """How many arrays a submission comes to, and whether I may have as many jobs queued."""
    stages = sbatch.chain(context.manifest)
    n_job_tasks = sum(len(stage.indices) for stage in stages)
    words = ", ".join(f"{kind} {n}" for kind, n in Counter(stage.kind for stage in stages).items())
    size = context.manifest.array_size
    text = f"of at most {size} job tasks, for {len(context.trials)} trials: {words}; {n_job_tasks} jobs in all"
    yield Finding("ok", "arrays", text)
    limit = site.max_submitted()
    if limit is not None and n_job_tasks > limit:
        todo = "submit the grid in parts, or several trials a job task (--pack)"
        yield Finding("warn", "jobs", f"you may have {limit} queued: {todo}")


# ---------------------------------------------------------------- folders and data
def check_paths(context: Context) -> Iterator[Finding]:
    """Results and features can be written from here."""
    config = context.experiment.config
    for name, folder in (("trained", trained_root(config)), ("features", features_root(config))):
        if why := probe.try_folder(folder):
            todo = f"Set paths.{name} or CARABID_ROOT to a folder that you may write to and that nodes see"
            yield Finding("FAIL", f"{name}/", f"{folder} cannot be written to: {why}. {todo}")
        else:
            yield Finding("ok", f"{name}/", f"{folder} can be written to")


def check_cache(context: Context) -> Iterator[Finding]:
    """Data and weights are on this machine, so that nodes without internet find them."""
    configs = [sharing[0].config for sharing in sharing_features(context.trials)]
    for config in {config.data.source: config for config in configs}.values():
        here = open_source(config.data).is_here()
        yield _cached(f"data {config.data.source}", here, known_data(config) is not None)
    for config in {config.backbone: config for config in configs}.values():
        here = weights_signature(config.backbone) is not None
        yield _cached(f"weights {config.backbone.display_name}", here, known_weights(config) is not None)
    for config in {config.backbone: config for config in configs if "text" in towers_of(config)}.values():
        here = weights_signature(config.backbone) is not None
        yield _cached(f"texts {config.backbone.display_name}", here, known_text_weights(config) is not None)


def check_tables(context: Context) -> Iterator[Finding]:
    """The tables can be trained on as the trials ask; what is odd about them, copies of images among it where these were
    hashed."""
    configs = [trial.config for trial in context.trials if open_source(trial.config.data).is_here()]
    if not configs:
        yield Finding("skip", "tables", "the data are not on this machine")
        return
    warnings = preflight(configs) + [line for config in {c.data: c for c in configs}.values() for line in copies(config)]
    yield Finding("warn" if warnings else "ok", "tables", "; ".join(["they can be trained on", *dict.fromkeys(warnings)]))


def _cached(what: str, here: bool, known: bool) -> Finding:
    if not here:
        return Finding("FAIL", what, f"not on this machine. Run {FETCH} where there is internet")
    if not known:
        return Finding("warn", what, f"here, but never read to the end: it may be incomplete. Run {FETCH}")
    return Finding("ok", what, "here, and read to the end before")


# ---------------------------------------------------------------- a node
def check_node(context: Context) -> Iterator[Finding]:
    """What a small job sees on a node of the training's: Python, device, folders, data, clock. Here, where stages run here."""
    trained = trained_root(context.experiment.config)
    if not context.look:
        yield Finding("skip", "node", "not looked at (--no-probe)")
        return
    if context.no_slurm and not context.local:
        yield Finding("skip", "node", context.no_slurm)
        return
    if context.local:
        context.seen = probe.look_here(context.experiment.config, trained)
    else:
        try:
            context.seen, at_work = probe.look_there(context.manifest, trained, context.patience)
        except probe.NotStarted as error:
            yield Finding("skip", "node", f"{error}. Try again later, or with more --patience")
            return
        yield clock_line(context.seen.time, at_work, time.time())
    yield from _node_lines(context, context.seen)


def _node_lines(context: Context, seen: probe.Seen) -> Iterator[Finding]:
    if absent := [name for name, version in seen.versions.items() if version is None]:
        todo = "Install them in the environment that the cluster profile names"
        yield Finding("FAIL", "node", f"{seen.host} lacks {', '.join(absent)}. {todo}")
    else:
        yield Finding("ok", "node", f"{seen.host}: Python {seen.python}, torch {seen.versions['torch']}")
    yield device_line(seen, asked=0 if context.local else context.job("train").gpus_per_node)
    if seen.unwritable:
        yield Finding("FAIL", "node: features/", f"{seen.unwritable}. Set paths.features to a folder that nodes may write to")
    if seen.stage:
        yield stage_line(seen)
    for name in seen.missing:
        todo = "Caches must lie in a folder that nodes see (HF_HOME, …)"
        yield Finding("FAIL", f"node: {name}", f"not seen from {seen.host}. {todo}; run {FETCH} again when they do")
    enough = seen.temporary_free >= TEMPORARY
    todo = "" if enough else ". Set TMPDIR to a larger disk, in the cluster profile's `variables`"
    text = f"{format_bytes(seen.temporary_free)} free in {seen.temporary}{todo}"
    yield Finding("ok" if enough else "warn", "node: temporary files", text)


def device_line(seen: probe.Seen, asked: int) -> Finding:
    """Whether torch can compute there, on the GPU that is asked for."""
    if seen.device_error:
        return Finding("FAIL", "node: device", seen.device_error)
    if asked and seen.gpu_memory is None:
        todo = "Set device=auto, or gpus_per_node=0 in resources.extract, train and evaluate"
        return Finding("warn", "node: device", f"a GPU is asked for, and training would leave it idle. {todo}")
    size = format_bytes(seen.gpu_memory) if seen.gpu_memory else "no GPU"
    return Finding("ok", "node: device", f"{seen.device}, {size}: torch computes on it")


def stage_line(seen: probe.Seen) -> Finding:
    """Whether features can be copied to the node's own disk, as `paths.stage` asks."""
    if seen.stage_error:
        todo = "Set paths.stage to a folder of the node's own disk, or to null"
        return Finding("FAIL", "node: paths.stage", f"{seen.stage}: {seen.stage_error}. {todo}")
    return Finding("ok", "node: paths.stage", f"{format_bytes(seen.stage_free)} free in {seen.stage}")


def clock_line(theirs: float, earliest: float, latest: float) -> Finding:
    """Whether the node's time lay between these two of ours."""
    ahead, behind = theirs - latest, earliest - theirs
    if max(ahead, behind) <= CLOCK_SECONDS:
        return Finding("ok", "node: clock", f"as here, within {math.ceil(latest - earliest) + CLOCK_SECONDS} s")
    off = f"{ahead:.0f} s ahead of" if ahead > behind else f"{behind:.0f} s behind"
    why = "Leases do not compare clocks; but times in logs will not fit, nor tools that compare files' times: tell the site"
    return Finding("warn", "node: clock", f"{off} this machine's. {why}")


CHECKS: tuple[Check, ...] = (
    check_partitions, check_scripts, check_limits, check_paths, check_cache, check_tables, capacity.check_disk, check_node,
    capacity.check_memory,
)  # fmt: skip
OF_SLURM: tuple[Check, ...] = (check_partitions, check_scripts, check_limits)
