"""`carabid demo`: the whole chain on generated beetles with tiny random backbones, on this machine. Loads no torch itself."""

import os
import time
from pathlib import Path

from pipeline.backbones.lite0 import find_weights, write_lite0
from pipeline.disk.layout import SHIPPED, all_experiments, root
from pipeline.errors import WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.manifest.manifest import Manifest, Terms, make_manifest
from pipeline.launch.submitting import local
from pipeline.launch.watching.plan import missing_trials
from pipeline.reporting.page import page
from pipeline.reporting.results import by_look, collect, print_tables, sorts, summarize

# A tiny random backbone on some thousand small images wants higher rates, smaller adapters and far fewer epochs than
# BioCLIP-2 on the real data, and a CPU wants fp32. Beside these overrides configs/beetles/ is used as it stands.
SHARED = ("seed=0,1", "train.precision=fp32", "features.dtype=fp32", "device=cpu", "resources.lease_seconds=30")
TAIL = ("optim.lr=1e-3", "train.epochs=20", "model.encoder.lr_scale=0.1")
LORA = ("optim.lr=1e-3", "train.epochs=20", "train.batch_size=64", "model.encoder.r=8", "model.encoder.alpha=8")
METHODS: dict[str, tuple[str, ...]] = {
    "frozen": ("optim.lr=1e-3", "train.epochs=60"),
    "finetune": TAIL,
    "baseline": TAIL,
    "dinov2": ("optim.lr=1e-4", "train.epochs=20", "model.encoder.channels=256"),
    "augmentation": TAIL,
    "lora": LORA,
    "combined": LORA,
    "pretrained": ("optim.lr=1e-3", "train.epochs=60", "experiment=beetles-pretrained"),
}
"""The last one is `frozen` on a real pretrained network, where its package is installed."""
BACKBONES = {"dinov2": "backbone.name={}", "pretrained": "backbone={{kind: timm, name: 'local-dir:{}', views: {{sizes: [96]}}}}"}
PLAIN = ("mean_rgb", "pixels")
WORKERS = 2
SCALE = 1.0
"""Of the events that are generated."""


def run(out: Path | None) -> None:
    """Generate, extract, train, evaluate, collect, and print the table; what an earlier run finished is not done again.

    Raises WorkError if a trial failed; the message names its log.
    """
    started = time.monotonic()
    place = out.resolve() if out else root() / "demo"
    os.environ |= {"CARABID_ROOT": str(place), "OMP_NUM_THREADS": "1"}
    prepare(place)
    manifests = [manifest for name, overrides in experiments(place) if (manifest := _manifest(name, overrides))]
    ended_well = local.run(manifests, WORKERS) if manifests else True
    show()
    report = page.write(all_experiments(), place / "report.html")
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes; everything is under {place}. Look again with: CARABID_ROOT={place} carabid results")
    print(f"All of it as one page, to open in a browser: {report}")
    if not ended_well:
        raise WorkError("some of the trials did not finish; the lines above name their logs. `carabid demo` again goes on")


def prepare(place: Path) -> None:
    """Data in the challenge's schema and two tiny backbones in their hubs' layouts; each is there as a whole or not at all."""
    from pipeline.tasks import load_task

    load_task("beetles").generate(place / "data", scale=SCALE)  # the same data already there are left as they are
    missing = [name for name in ("clip", "dinov2") if not (place / "backbones" / name).exists()]
    if (weights := find_weights()) and not (place / "backbones" / "pretrained").exists():
        write_lite0(weights, place / "backbones" / "pretrained")
    if missing:
        from pipeline.backbones.tiny import write_tiny_dinov2, write_tiny_open_clip  # (seconds of libraries)

        write = {"clip": write_tiny_open_clip, "dinov2": write_tiny_dinov2}
        for name in missing:
            write[name](place / "backbones" / name)


def experiments(place: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Every experiment of the demo: YAML and overrides. The last one is a control: targets dealt to other groups."""
    data, backbones = f"data.source={place / 'data'}", place / "backbones"
    clip = f"backbone.name=local-dir:{backbones / 'clip'}"
    chosen = []
    for name, overrides in METHODS.items():
        if name == "pretrained" and not (backbones / name).exists():
            continue
        backbone = BACKBONES[name].format(backbones / name) if name in BACKBONES else clip
        chosen.append(("frozen" if name == "pretrained" else name, (*SHARED, data, backbone, *overrides)))
    chosen += [(name, (*SHARED[1:], data)) for name in PLAIN]
    control = ("experiment=beetles-frozen-permuted", "data.permute_targets=true", *METHODS["frozen"])
    return [*chosen, ("frozen", (*SHARED, data, clip, *control))]


def show() -> None:
    """The table of everything under the root, and below it what knowing nothing but the training targets gives."""
    rows = collect(all_experiments())
    tables = by_look(rows)
    by = sorts(tables, "in_domain.r2")
    print_tables({look: summarize(some, by[look]) for look, some in tables.items()})
    chance = next((r2 for row in rows if (r2 := row.figures.get("mean_predictor.in_domain.r2")) is not None), None)
    if chance is not None:
        print(f"The mean predictor, which always says the training groups' mean: R² in-domain {chance:.3f}")


def _manifest(name: str, overrides: tuple[str, ...]) -> Manifest | None:
    experiment = load_experiment(SHIPPED / "configs" / "beetles" / f"{name}.yaml", overrides)
    todo = missing_trials(experiment)
    return make_manifest(experiment, todo, Terms(argv=("carabid", "demo"))) if todo else None
