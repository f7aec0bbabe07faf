"""What each part of a biomass method is worth, paired by fold: the tables of docs/biomass.md.

    python benchmarks/biomass.py FOLDER NETWORK [TABLE …]

FOLDER gets generated quadrats, and the results of every method, each trained with five folds by day on this machine, through the
command line as a person would do it; what is there already is not done again. NETWORK is a pretrained one of timm:
`local-dir:/a/folder`, `hf-hub:owner/name`. Tables: `frozen`, which trains no network, and `trained`; both by default.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pipeline.disk.writing import read_json
from pipeline.reporting.results import cells_to_markdown

FOLDS = range(5)
POSES = ("backbone.views.poses=[hflip,vflip]", "evaluate.tta=[1,0,0]")
ALL_TARGETS = 'data.targets=["Dry_Green_g","Dry_Dead_g","Dry_Clover_g","GDM_g","Dry_Total_g"]'


@dataclass(frozen=True)
class Method:
    """A line of a table: a YAML of configs/biomass and what is set on the command line."""

    label: str
    config: str
    overrides: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()
    """Set when the trials of the line above it are evaluated again; (): it has trials of its own."""


def stack(label: str, crops: str, sizes: str, taps: str, poolings: str, *more: str) -> Method:
    """A ridge stack that sees these crops at these sizes, after these stages, pooled in these ways."""
    seen = (f"backbone.views.crops=[{crops}]", f"backbone.views.sizes=[{sizes}]")
    return Method(label, "ridge_stack", (*seen, f"backbone.taps=[{taps}]", f"backbone.poolings=[{poolings}]", *more))


SCALES, STAGES, WAYS = "96,160,224", "-3,-2,-1", "mean,max,min,gem"
FROZEN = {
    "stack": stack("`ridge_stack`: three sizes, three stages, four poolings", "whole", SCALES, STAGES, WAYS),
    "halves": stack("both halves instead of the whole", "left,right", SCALES, STAGES, WAYS),
    "three": stack("both halves and the whole", "whole,left,right", SCALES, STAGES, WAYS),
    "size": stack("one size (224)", "whole", "224", STAGES, WAYS),
    "tap": stack("the last stage alone", "whole", SCALES, "-1", WAYS),
    "mean": stack("the mean alone", "whole", SCALES, STAGES, "mean"),
    "one": stack("one size, the last stage, the mean", "whole", "224", "-1", "mean"),
    "raw": stack("targets alone, not their logarithms", "whole", SCALES, STAGES, WAYS, "model.head.log_share=0"),
    "no-sums": stack("sums not seen to", "whole", SCALES, STAGES, WAYS, "data.sums={}"),
}
"""Ridge stacks; the others each see something else, or lack something, than the first."""
EPOCHS, HELD = 16, 4
LEARNS = (
    f"train.epochs={EPOCHS}", f"train.head_first.epochs={HELD}", "train.head_first.lr=1e-3", "optim.lr=1e-3", "optim.ema=0.97",
    "model.standardize_targets=true",
)  # fmt: skip
SMALL = ("backbone.views.sizes=[64]",)
TRAINED = {
    "two-stream": Method("`two_stream`: both halves, the mean of weights", "two_stream", (*SMALL, *POSES, *LEARNS)),
    "flips": Method("… and test-time augmentation: two flips", "two_stream", evaluate=("evaluate.tta=[1,1,1]",)),
    "adapted": Method("… adapted to the test, lr 1e-4", "two_stream", evaluate=("evaluate.adapt.lr=1e-4",)),
    "adapted-slowly": Method("… adapted to the test, lr 1e-5", "two_stream", evaluate=("evaluate.adapt.lr=1e-5",)),
    "no-ema": Method("`two_stream`, the last weights instead of their mean", "two_stream", (*SMALL, *LEARNS, "optim.ema=0")),
    "held": Method(
        "`two_stream`, the network held but for the last epoch",
        "two_stream",
        (*SMALL, *LEARNS, f"train.head_first.epochs={EPOCHS - 1}"),
    ),
    "parts": Method(
        "`two_stream`, sums by construction, Gaussian likelihood of all five",
        "two_stream",
        (*SMALL, *LEARNS, ALL_TARGETS, "data.sums.GDM_g=[Dry_Green_g,Dry_Clover_g]", "data.sums.Dry_Total_g=[GDM_g,Dry_Dead_g]",
         "model.outputs.kind=parts", "loss.kind=nll"),
    ),
    "single": Method("`single_stream`, as many pixels", "single_stream", ("backbone.views.sizes=[90]", *LEARNS)),
    "tiled": Method("`dinov2_tiled`: tiles and FiLM, as many pixels", "dinov2_tiled", ("backbone.views.sizes=[32]", *LEARNS)),
    "convnext": Method(
        "`two_stream`, ConvNeXt-Atto from random weights", "two_stream", (*SMALL, *LEARNS, "backbone.name=convnext_atto")
    ),
}  # fmt: skip
"""Networks; what the others lack or do otherwise than the first."""
TABLES = {"frozen": FROZEN, "trained": TRAINED}
Methods = dict[str, Method]


def run(folder: Path, network: str, methods: Methods) -> None:
    """Generate the quadrats, train all methods, and note how each one's folds score."""
    carabid("generate", "biomass", "--out", folder / "quadrats", root=folder)
    above = ""
    for name, method in methods.items():
        above = above if method.evaluate else name
        common = (f"experiment={above}", f"data.source={folder / 'quadrats' / 'train.csv'}", "data.split.by=[Sampling_Date]")
        folds = "data.split.fold=" + ",".join(map(str, FOLDS))
        weights = ("backbone.kind=timm", f"backbone.name={network}", "backbone.pretrained=false")
        keys = dict(each.split("=", 1) for each in (*common, folds, *weights, *methods[above].overrides, *method.evaluate))
        set_here = [f"{key}={value}" for key, value in keys.items()]  # of a key twice the last one
        if not (noted := folder / "scores" / f"{name}.json").exists():
            config = f"configs/biomass/{method.config}.yaml"
            if method.evaluate:
                carabid("evaluate", config, *set_here, root=folder)
                carabid("collect", config, *set_here, root=folder)
            else:
                carabid("submit", config, "--cluster", "local", "--workers", 2, "--wait", *set_here, root=folder)
            noted.parent.mkdir(exist_ok=True)
            noted.write_text(json.dumps(read_scores(folder / "trained" / above)))


def carabid(*arguments: object, root: Path) -> None:
    """Run the command line; what it prints goes to a file of the root."""
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    with (root / "output.txt").open("a") as output:
        subprocess.run(command, check=True, env={**os.environ, "CARABID_ROOT": str(root)}, stdout=output, stderr=output)


def read_scores(experiment: Path) -> dict[str, float]:
    """The score of each fold and, as `all`, out of all folds."""
    (together,) = experiment.glob("ensembles/*/results.json")
    score = read_json(together)["figures"]["score"]
    trials = {_fold(path.parent): read_json(path)["summary"]["score"] for path in experiment.glob("*/results.json")}
    assert len(trials) == len(FOLDS), f"{experiment}: not every fold has results; see output.txt"
    return {"all": score} | trials


def _fold(trial: Path) -> str:
    return str(yaml.safe_load((trial / "config.yaml").read_text())["data"]["split"]["fold"])


def table(folder: Path, methods: Methods) -> tuple[list[str], list[list[str]]]:
    """A header, and a line for each method: its score out of fold and over folds, and how far it is above the first one's."""
    scores = pd.DataFrame({name: read_json(folder / "scores" / f"{name}.json") for name in methods}).T
    folds = scores[[str(fold) for fold in FOLDS]]
    above = folds - folds.loc[next(iter(methods))]
    lines = [
        [method.label, f"{scores.loc[name, 'all']:.3f}", _mean(folds.loc[name]), _paired(above.loc[name])]
        for name, method in methods.items()
    ]
    return ["", "weighted R² out of fold", "mean ± sd of the folds", "above the first, paired"], lines


def _mean(values: pd.Series, form: str = ".3f") -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=1):.3f}"


def _paired(values: pd.Series) -> str:
    """The mean difference, its sd, and in how many folds it is above; nothing for the first itself."""
    return f"{_mean(values, '+.3f')}, {int(np.sum(values > 0))} of {len(values)}" if values.any() else ""


def main() -> None:
    folder, network, *names = sys.argv[1:]
    for name in names or TABLES:
        run(Path(folder).resolve(), network, TABLES[name])
        print(cells_to_markdown(*table(Path(folder).resolve(), TABLES[name])))


if __name__ == "__main__":
    main()
