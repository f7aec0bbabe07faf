"""The README of a trial's folder, for whoever finds it later: what results.json says, in a page. Loads no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.disk.layout import TrialDir

MOST_ROWS = 50
"""Of the table in detail; results.json has all."""
FILES = """\
`config.yaml` trains it again; `model.safetensors` holds the trained tensors, `adapter/` (if there) the adapter in
PEFT's format, `classifier.skops` (if there) a classifier of scikit-learn."""


def model_card(trial: TrialDir, results: Mapping[str, Any]) -> str:
    """The card of a trial with these results, whatever its task."""
    lines = [f"# {trial.path.parent.name}: {trial.path.name}", "", *figures_told(results), FILES, ""]
    return "\n".join(lines)


def figures_told(results: Mapping[str, Any]) -> list[str]:
    """What was evaluated, the figures that tables show, and those of each part, as lines of Markdown."""
    figures, headline = results["figures"], results["headline"]
    rows = [(title, _cell(figures.get(name))) for name, title in headline.items()]
    return [
        f"Evaluated on {results['split']} ({results['n_images']} images), chosen on {results['selected_on']}.",
        "",
        *_table(("figure", "value"), rows),
        "",
        *_details(figures),
    ]


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
