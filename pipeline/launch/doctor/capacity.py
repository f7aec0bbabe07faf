"""Whether there is room for what an experiment writes and computes: on disks, within quotas, in memory. Loads no torch."""

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.amounts import format_bytes
from pipeline.config.identity import towers_of
from pipeline.config.trial import Config
from pipeline.disk.layout import features_root, trained_root
from pipeline.features.hashes import WeightsRecord, known_data, known_weights
from pipeline.features.text_hashes import known_text_weights, known_texts
from pipeline.launch.doctor.findings import FETCH, Context, Finding
from pipeline.launch.manifest.manifest import sharing_features
from pipeline.launch.scheduler import site
from pipeline.launch.submitting.submit import needs_extraction
from pipeline.launch.watching import estimates

FULL = 0.8
"""From this share of a disk or of a memory on, what fits by an estimate may not fit."""
QUOTA = ("quota", "--no-wrap", "--raw-grace", "--show-mntpoint", "--hide-device")


# ---------------------------------------------------------------- disks
def check_disk(context: Context) -> Iterator[Finding]:
    """Room for what is to be written: features that are not there yet, a model for each trial, a checkpoint for one."""
    features = models = checkpoint = 0
    for sharing in sharing_features(context.trials):
        config = sharing[0].config
        if (known := _known(config)) is None:
            yield Finding("skip", "disk", f"sizes can be estimated once {FETCH} has run")
            return
        weights, n, texts = known
        features += estimates.features_bytes(config, weights, n, texts) if needs_extraction(sharing) else 0
        models += sum(estimates.model_bytes(trial.config, weights, texts) for trial in sharing)
        trained = max(estimates.trained_parameters(trial.config, weights, texts) for trial in sharing)
        checkpoint = max(checkpoint, estimates.CHECKPOINT * trained)
    config = context.experiment.config
    yield _disk("features", features_root(config), features)
    yield _disk("trained", trained_root(config), models + checkpoint)


def _known(config: Config) -> tuple[WeightsRecord, int, estimates.Texts | None] | None:
    """What records tell of the image tower, of how many images there are, and of the texts where the head reads some; None where
    one of them is not known."""
    weights, data = known_weights(config), known_data(config)
    if weights is None or data is None:
        return None
    if "text" not in towers_of(config):
        return weights, data.n, None
    tower, texts = known_text_weights(config), known_texts(config)
    return None if tower is None or texts is None else (weights, data.n, estimates.Texts(tower, texts.n))


def _disk(name: str, folder: Path, needed: int) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    disk, quota = shutil.disk_usage(there).free, quota_left(there)
    free = disk if quota is None else min(disk, quota)
    left = "free" if free == disk else "left of your quota"
    text = f"about {format_bytes(needed)} to be written, {format_bytes(free)} {left} in {there}"
    if needed <= FULL * free:
        return Finding("ok", f"disk for {name}/", text)
    todo = f"Make room there, or set paths.{name} to another disk"
    return Finding("FAIL" if needed > free else "warn", f"disk for {name}/", f"{text}. {todo}")


def quota_left(folder: Path) -> int | None:
    """Bytes that my quota leaves me on the disk of a folder, by `quota` and Lustre's `lfs`; None where there is none."""
    lustre = ("lfs", "quota", "-q", "-u", getpass.getuser(), str(folder))
    return min((left for command in (QUOTA, lustre) for left in _quotas(_output_of(command), folder)), default=None)


def _quotas(text: str, folder: Path) -> Iterator[int]:
    """From `mount used quota limit` in KiB, where * marks what is exceeded and 0 is no limit."""
    for mount, used, soft, hard in re.findall(r"(/\S*)\s+(\d+)\*?\s+(\d+)\*?\s+(\d+)", text):
        limits = [int(limit) for limit in (soft, hard) if int(limit)]
        if limits and folder.is_relative_to(mount):
            yield max(0, min(limits) - int(used)) << 10


def _output_of(command: Sequence[str]) -> str:
    """What a command prints, whatever its status (`quota` fails where one is exceeded); nothing if it is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


# ---------------------------------------------------------------- memory
def check_memory(context: Context) -> Iterator[Finding]:
    """The method fits the GPU, by an estimate; where a stage asks for none, the memory that it asks for."""
    needs: dict[str, list[int]] = {"extract": [], "train": []}
    has = {stage: _memory(context, stage) for stage in needs}
    for sharing in sharing_features(context.trials):
        if (known := _known(sharing[0].config)) is None:
            yield Finding("skip", "memory", f"needs can be estimated once {FETCH} has run")
            return
        weights, n, texts = known
        needs["extract"].append(estimates.extraction_bytes(sharing[0].config, weights, texts))
        largest = has["train"][0][1] if has["train"][0] else None
        needs["train"] += [estimates.training_bytes(t.config, weights, n, largest, texts) for t in sharing]
    for stage, needed in needs.items():
        yield _fits(stage, max(needed), *has[stage])


def _memory(context: Context, stage: str) -> tuple[tuple[int, int] | None, str]:
    """Bytes that a stage has, at least and at most, and of what; None where that is not known."""
    job, seen = context.job(stage), context.seen
    if seen and (context.local or (stage == "train" and seen.gpu_memory)):
        size = seen.gpu_memory or seen.memory
        return (size, size), f"{seen.device}" if seen.gpu_memory else "this machine"
    if context.local:
        return None, "this machine (--probe tells it)"
    if not job.gpus_per_node:
        size = (job.memory or 0) << 20
        return ((size, size) if size else None), f"resources.{stage}.mem"
    kinds = {kind for node in site.nodes_for(job, context.nodes) for kind in node.gpus}
    kind = job.gpu_type or (kinds.pop() if len(kinds) == 1 else "")
    return estimates.gpu_memory(kind), kind or f"the GPU (resources.{stage}.gpu_type is not set)"


def _fits(stage: str, needed: int, memory: tuple[int, int] | None, of: str) -> Finding:
    what, about = f"memory of {stage}", f"about {format_bytes(needed)} by estimate"
    if memory is None:
        return Finding("skip", what, f"{about}; what {of} has is not known: compare it yourself")
    low, high = memory
    text = f"{about}, {of} has {format_bytes(low)}{f' to {format_bytes(high)}' if high != low else ''}"
    if needed <= FULL * low:
        return Finding("ok", what, text)
    smaller = "resources.extract_batch" if stage == "extract" else "train.batch_size or model.encoder.blocks"
    again = "" if stage == "extract" else ", set resources.gradient_checkpointing"
    todo = f"Lower {smaller}{again}, or ask for more with resources.{stage}"
    return Finding("FAIL" if needed > high else "warn", what, f"{text}. {todo}")
