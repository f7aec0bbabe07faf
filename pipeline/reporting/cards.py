"""The card of a trial (README.md in its folder), in the Hub's format: what it is, what it was trained on, what it is worth, how
it is loaded. What is not known is said to be unknown. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import hub
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.tasks import load_task

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

UNKNOWN = "unknown"
"""As the Hub calls a licence that nobody has said."""
MOST_ROWS = 50
"""Of the table in detail; results.json has all."""
MOST_NAMES = 30
"""Domains or classes that are listed; of more their number is told."""
SELECTION = "selection"
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
NO_TASK = "image-regression"
"""The kind of a task that the Hub has no name for: numbers from images."""
FILES = """\
`config.yaml` is the whole configuration; `model.safetensors` holds the trained tensors, `adapter/` (if there) the adapter in
PEFT's format, `classifier.skops` (if there) a classifier of scikit-learn; `results.json` has every figure, `provenance.json`
code, versions and hardware."""


@dataclass(frozen=True)
class Told:
    """What a card tells of."""

    trial: TrialDir
    config: Config
    record: Mapping[str, Any]
    """trained.json."""
    results: Mapping[str, Any]
    repository: str | None = None
    """Its `owner/name` on the Hub, where it is published."""
    license: str = UNKNOWN
    """Of its weights."""

    @property
    def name(self) -> str:
        return f"{self.trial.path.parent.name}/{self.trial.path.name}"

    @property
    def bases(self) -> list[str]:
        """The released models on the Hub that it is built on."""
        of_images = self.record.get("provenance", {}).get("weights", ())[: len(self.config.backbone.weights_from())]
        return [weights["repository"] for weights in of_images if "repository" in weights]

    @property
    def dataset(self) -> str | None:
        """The data set's name on the Hub, if that is where it comes from."""
        return self.config.data.source if is_on_hub(self.config.data.source) else None

    @property
    def hub_task(self) -> str | None:
        return load_task(self.config.task).hub_task


def model_card(of: Told) -> str:
    """The card of a trained and evaluated trial, whatever its task."""
    task = of.hub_task
    tags = ["carabid", "biology", "ecology", Path(of.config.task).stem, *([] if task else [NO_TASK])]
    relation = "adapter" if of.trial.adapter.is_dir() else "finetune"
    data = front_matter(
        of.results,
        of.dataset,
        task or NO_TASK,
        base_model=of.bases or None,
        base_model_relation=relation if of.bases else None,
        library_name="carabid",
        license=of.license,
        model_name=of.name.replace("/", "-"),
        pipeline_tag=task,
        tags=tags,
    )
    sections = {"Data": _data(of), "Figures": figures_told(of.results), "How to load it": _loading(of), "Limits": _limits(of)}
    sections |= {"How to make it again": _again(of), "Licences": _licences(of), "Files": [FILES]}
    lines = ["---", data.to_yaml(), "---", "", f"# {of.name}", "", *_what(of)]
    for title, told in sections.items():
        lines += ["", f"## {title}", "", *told]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def front_matter(results: Mapping[str, Any], dataset: str | None, task: str, **more: Any) -> ModelCardData:
    """What the Hub reads of a card; without figures where there are no results. `more` as `ModelCardData` takes it."""
    from huggingface_hub import EvalResult, ModelCardData

    of: dict[str, Any] = {"task_type": task, "dataset_type": dataset or "custom", "dataset_name": dataset or "images of its own"}
    values = {name: results["figures"].get(name) for name in _shown(results)}
    figures = [
        EvalResult(
            **of, metric_type=name, metric_value=value, metric_name=results["headline"][name], dataset_split=results["split"]
        )
        for name, value in values.items()
        if value is not None
    ]
    metrics = sorted({name.rpartition(".")[2] for name in values})
    more |= {"datasets": [dataset] if dataset else None, "metrics": metrics or None, "eval_results": figures or None}
    return ModelCardData(**more)


def _shown(results: Mapping[str, Any]) -> list[str]:
    """The names of figures that tables show; not again the one that the epoch was chosen by."""
    return [name for name in results.get("headline", ()) if name != SELECTION]


def is_on_hub(source: str) -> bool:
    """Whether a data set's or model's name is one of the Hub, and of nothing that lies here."""
    return ON_HUB.fullmatch(source) is not None and not Path(source).exists()


# ---------------------------------------------------------------- what it is, and of what
def _what(of: Told) -> list[str]:
    config, model = of.config, of.config.model
    learns = f"classes of `{config.data.label}`" if config.data.label else f"the numbers {_listed(config.data.targets)}"
    parts = f"encoder `{model.encoder.kind}`, head `{model.head.kind}`"
    base = " and ".join(_link(name) for name in of.bases) or f"`{_without_folder(config.backbone.display_name)}`"
    return [f"A model of the task `{Path(config.task).stem}`: from images it predicts {learns}. Backbone {base}; {parts}."]


def _data(of: Told) -> list[str]:
    """Where images come from, how many, and of which domains."""
    results, split = of.results, of.config.data.split
    where = f"[{of.dataset}](https://huggingface.co/datasets/{of.dataset})" if of.dataset else "images that are not on the Hub"
    groups = "" if results["n_events"] == results["n_images"] else f" of {results['n_events']} groups"
    told = [f"- source: {where}", f"- trained on {of.record.get('n_train', UNKNOWN)} images, split `{split.kind}`"]
    told += [f"- evaluated on {results['split']}: {results['n_images']} images{groups}"]
    if domains := of.record.get("train_domains"):
        told += [f"- domains that it knows: {_listed(domains)}"]
    if names := results.get("summary", {}).get("classes"):
        told += [f"- classes: {_listed(list(names))}"]
    return told


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})"


def _without_folder(name: str) -> str:
    """A backbone's name without where it lies on this machine."""
    return name if is_on_hub(name) else name.rpartition("/")[2]


# ---------------------------------------------------------------- figures
def figures_told(results: Mapping[str, Any]) -> list[str]:
    """What was evaluated, the figures that tables show, and those of each part, as lines of Markdown."""
    figures, headline = results["figures"], results["headline"]
    intervals = results.get("summary", {}).get("intervals") or {}
    rows = [(title, _cell(figures.get(name)) + _interval(intervals.get(name))) for name, title in headline.items()]
    return [
        f"Evaluated on {results['split']} ({results['n_images']} images), chosen on {results['selected_on']}.",
        "",
        *_table(("figure", "value"), rows),
        "",
        *_details(figures),
    ]


def _interval(bounds: Any) -> str:
    """The 95 % bootstrap interval of a figure that has one."""
    is_one = isinstance(bounds, list | tuple) and len(bounds) == 2 and None not in bounds
    return f" (95 %: {bounds[0]:.3f} … {bounds[1]:.3f})" if is_one else ""


def _details(figures: Mapping[str, float | None]) -> list[str]:
    """A table of the figures that stand in blocks: a row for each target, class or part, a column for each figure."""
    blocks: dict[str, dict[str, float | None]] = {}
    for name, value in figures.items():
        block, _, figure = name.rpartition(".")
        if block and not block.startswith("mean_predictor"):
            blocks.setdefault(block, {})[figure] = value
    columns = list(dict.fromkeys(name for block in blocks.values() for name in block))
    told = {name: block for name, block in blocks.items() if any(value is not None for value in block.values())}
    rows = [(name, *(_cell(block.get(column)) for column in columns)) for name, block in told.items()]
    return [*_table(("of", *columns), rows[:MOST_ROWS]), ""] if rows else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# ---------------------------------------------------------------- how it is used
def _loading(of: Told) -> Iterator[str]:
    """On the command line, and in Python where the images are all that it needs."""
    beside = {name: f"{name.partition('_')[0]}.jpg" for name in ("colour_card", "scale_bar") if getattr(of.config.data, name)}
    options = "".join(f" --{name.replace('_', '-')} {file}" for name, file in beside.items())
    folder = of.repository.rpartition("/")[2] if of.repository else of.name
    fetched = [f"hf download {of.repository} --local-dir {folder}"] if of.repository else []
    version = of.record.get("provenance", {}).get("carabid", "")
    yield f"With Carabid {version} installed:".replace("  ", " ")
    yield from ("", "```bash", *fetched, f'carabid predict "{folder}" image.jpg{options}', "```")
    if not beside:
        yield from ("", "or", "", "```python", *_python(of.repository, folder), "```")
    if not of.bases and of.config.backbone.weights_from():
        name = _without_folder(of.config.backbone.display_name)
        yield f"\nIts backbone is no model of the Hub: `{name}` must lie where `config.yaml` names it."


def _python(repository: str | None, folder: str) -> list[str]:
    imports = ["import carabid", *["from huggingface_hub import snapshot_download"] * bool(repository), ""]
    place = f'snapshot_download("{repository}", local_dir="{folder}")' if repository else f'"{folder}"'
    note = "" if repository else "  # from here, or below trained/"
    return [*imports, f"trial = carabid.open_trial({place}){note}", 'print(trial.predict(["image.jpg"], device="auto"))']


def _limits(of: Told) -> Iterator[str]:
    """What a reader of the figures is to know."""
    results, summary = of.results, of.results.get("summary", {})
    yield "- It was tested on images of the data above alone; other cameras, places or taxa may be harder."
    if results["split"] == results["selected_on"]:
        yield f"- Its figures are optimistic: they are of {results['split']}, by which its best epoch was chosen."
    if "adapted" in results["split"]:
        yield "- Its figures are of the model adapted to the images that it was tested on; loaded, it speaks as it was trained."
    if summary.get("permuted_targets"):
        yield "- A control: its targets were dealt to other groups, and it has nothing to say of images."
    if bad := summary.get("n_bad_images"):
        yield f"- {bad} images could not be read and count nowhere."
    yield from (f"- {warning}" for warning in summary.get("warnings", ())[:MOST_NAMES])


def _again(of: Told) -> Iterator[str]:
    """The command, and the code that it ran."""
    known = of.record.get("provenance", {})
    commit, is_dirty = (known.get("code", {}).get(key) for key in ("commit", "dirty"))
    yield from ("```bash", "carabid submit config.yaml  # data.source=… where the images lie elsewhere", "```", "")
    yield f"Seed {of.config.seed}; Carabid {known.get('carabid', UNKNOWN)}, commit {commit or UNKNOWN}" + (
        ", with changes that are not in it." if is_dirty else "."
    )
    versions = {
        name: known.get("packages", {}).get(name) for name in ("torch", "open_clip_torch", "transformers", "timm", "peft")
    }
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield f"Python {known.get('python', UNKNOWN)}{', ' * bool(told)}{told}."


def _licences(of: Told) -> Iterator[str]:
    """Of these weights, of what they are built on and of the images, where it is known."""
    yield f"- these weights: {of.license if of.license != UNKNOWN else 'unknown (nobody has said)'}"
    for name in of.bases:
        yield f"- {_link(name)}: {hub.stated_license(name, 'models') or 'unknown here; see its card'}"
    if not of.bases and of.config.backbone.weights_from():
        yield f"- backbone `{_without_folder(of.config.backbone.display_name)}`: unknown"
    known = hub.stated_license(of.dataset, "datasets") if of.dataset else None
    yield f"- images: {known or ('unknown here; see the card of the data set' if of.dataset else UNKNOWN)}"
