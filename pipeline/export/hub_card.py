"""The card of a tuned model for the Hub (README.md): what it is made of, how it was evaluated, how it is loaded. Nothing of this
machine stands in it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData

from pipeline.backbones.open_clip_names import hub_repository
from pipeline.config.backbone import OpenClip
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import reading
from pipeline.disk.writing import read_json
from pipeline.reporting.cards import figures_told, front_matter, is_on_hub

TASK = "zero-shot-image-classification"
TAGS = ["clip", "biology", "species", "image-text-retrieval"]
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
    base = _base(config)
    return front_matter(
        results,
        config.data.source if is_on_hub(config.data.source) else None,
        TASK,
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="open_clip",
        model_name=_name(trial),
        pipeline_tag=TASK,
        tags=[TASK, *TAGS],
    )


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


def _name(trial: TrialDir) -> str:
    return f"{trial.path.parent.name}-{trial.path.name}"
