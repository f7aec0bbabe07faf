"""The card of a tuned model for the Hub (README.md): what it is made of, how it was evaluated, how it is loaded. Nothing of this
machine stands in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from pipeline.backbones.open_clip_names import hub_repository
from pipeline.config.backbone import OpenClip
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import reading
from pipeline.disk.writing import read_json
from pipeline.reporting.cards import figures_told

TASK = "zero-shot-image-classification"
TAGS = ["clip", "biology", "species", "image-text-retrieval"]
SELECTION = "selection"
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
LICENSE = "# license: yours to say; the licences of the base model and of the images may bind you"
LOADED = """\
```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:OWNER/NAME")  # or "local-dir:/this/folder"
tokenizer = open_clip.get_tokenizer("hf-hub:OWNER/NAME")
```"""


def hub_card(trial: TrialDir, config: Config) -> str:
    """The card; without figures where the trial is not evaluated. Raises Damaged for results that cannot be read."""
    results: dict[str, Any] = {}
    if trial.results.is_file():
        with reading(trial.results, "`carabid evaluate` makes it again"):
            results = dict(read_json(trial.results))
    told = figures_told(results) if results else ["It has not been evaluated.", ""]
    lines = ["---", _data(trial, config, results).to_yaml(), LICENSE, "---", "", f"# {_name(trial)}", "", _made(config), ""]
    lines += ["## How to load it", "", LOADED, "", _said(config), "", "## Figures", "", *told]
    return "\n".join(lines)


def _data(trial: TrialDir, config: Config, results: dict[str, Any]) -> ModelCardData:
    """The front matter."""
    dataset = config.data.source if _is_on_hub(config.data.source) else None
    base = _base(config)
    return ModelCardData(
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=[dataset] if dataset else None,
        library_name="open_clip",
        metrics=sorted({name.rpartition(".")[2] for name in _told(results)}) if results else None,
        model_name=_name(trial),
        eval_results=_figures(results, dataset) if results else None,
        pipeline_tag=TASK,
        tags=[TASK, *TAGS],
    )


def _figures(results: dict[str, Any], dataset: str | None) -> list[EvalResult]:
    """The figures that tables show."""
    of: dict[str, Any] = {"task_type": TASK, "dataset_type": dataset or "custom", "dataset_name": dataset or "images of its own"}
    values = {name: results["figures"].get(name) for name in _told(results)}
    return [
        EvalResult(
            **of, metric_type=name, metric_value=value, metric_name=results["headline"][name], dataset_split=results["split"]
        )
        for name, value in values.items()
        if value is not None
    ]


def _told(results: dict[str, Any]) -> list[str]:
    """The names of figures that tables show; not again the one that the epoch was chosen by."""
    return [name for name in results["headline"] if name != SELECTION]


def _made(config: Config) -> str:
    base, towers = _base(config), {"images": config.model.encoder, "texts": config.model.text}
    of = f"[{base}](https://huggingface.co/{base})" if base else "a model of open_clip"
    tuned = " and ".join(f"that of {what} ({block.kind})" for what, block in towers.items() if block.learns)
    if not tuned:
        return f"The two towers of {of}, as they were released."
    return f"Tuned from {of} with Carabid; of its two towers {tuned}, by the loss {config.loss.kind}."


def _said(config: Config) -> str:
    return f"Texts of classes were written as `{config.texts.evaluation}` ($SCI$: the scientific name)."


def _base(config: Config) -> str | None:
    """The released model's name on the Hub, if that is where it comes from."""
    block = config.backbone
    return hub_repository(block.name, block.pretrained) if isinstance(block, OpenClip) else None


def _is_on_hub(source: str) -> bool:
    return ON_HUB.fullmatch(source) is not None and not Path(source).exists()


def _name(trial: TrialDir) -> str:
    return f"{trial.path.parent.name}-{trial.path.name}"
