"""`carabid init`: from a table, or a folder of images, that nobody has described to the YAML of an experiment. Nothing is written
that could not be trained on. Loads no torch."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.backbones import weights_state
from pipeline.backbones.named import parse_backbone
from pipeline.config.backbone import Backbone, OpenClip, Weights
from pipeline.data.image_places import Ask
from pipeline.data.roles import Wishes
from pipeline.disk.layout import all_experiments, root
from pipeline.disk.writing import write_text
from pipeline.errors import NotFetched, UserError
from pipeline.experiments.reading import Experiment, load_experiment
from pipeline.launch.drafting.draft import draft, name_of, told
from pipeline.launch.drafting.look import Look, find_table, look
from pipeline.launch.watching.preflight import preflight
from pipeline.tasks import check


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    place: Path
    out: Path | None = None
    wishes: Wishes = field(default_factory=Wishes)
    backbone: str | None = None
    skip: bool = False
    overwrite: bool = False
    typed: str = "carabid init"


def begin(request: Request, ask: Ask) -> Iterator[str]:
    """Writes the YAML, and says what was understood of the table, what is to be said of it, and what comes next. Raises UserError
    for what could not be trained on."""
    table = find_table(request.place)
    out = request.out or Path(f"{name_of(table)}.yaml")
    _check_out(out, request.overwrite)
    backbone = _backbone(request.backbone)
    missing = [f"the weights of {backbone.display_name}"] * (weights_state(backbone) is None)
    seen = look(table, request.wishes, ask)
    yield f"{table}: {seen.n_rows} rows"
    yield from told(seen)
    text = draft(seen, out, backbone, request.skip, request.typed)
    yield from seen.notes
    warnings, waits = _tried(text, out)
    yield from (f"warning: {warning}" for warning in [*_of_splits(seen), *warnings] if warning not in seen.notes)
    write_text(out, text)
    yield f"wrote {out}"
    yield from _next(out, ["the images"] * waits + missing)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: the name of a configuration ends in .yaml")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UserError(f"{out} exists already: name another file by --out, or replace it by --overwrite")


def _backbone(name: str | None) -> Backbone:
    """As it was named, a folder by its whole path; else the one of configs/generic/. Raises UserError for a folder that there is
    not, and for an architecture without weights: nobody means these."""
    if name is None:
        return OpenClip(name=OpenClip().name)
    block = parse_backbone(name).located(lambda path: str(here) if (here := Path(path).expanduser().resolve()).exists() else path)
    for weights in block.weights_from():
        if weights.path and not Path(weights.path).exists():
            raise UserError(f"--backbone {name}: there is no such folder")
        if weights == Weights():
            raise UserError(f"--backbone {name}: it has no weights. Write {name}:TAG, hf-hub:owner/name, a folder, or pixels")
    return block


def _tried(text: str, out: Path) -> tuple[list[str], bool]:
    """What is to be said of the table once the YAML is read as `submit` reads it, and whether images are still to be downloaded.
    Raises UserError for what is wrong with either."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / out.name
        path.write_text(text, encoding="utf-8")
        try:
            return _looked_at(load_experiment(path))
        except NotFetched:
            return [], True
        except UserError as error:
            words = str(error).replace(str(path), out.name).replace("data.on_bad_image=skip", "--skip-bad-images")
            raise UserError(f"{words}\nNothing was written: no job could do this.") from error


def _looked_at(experiment: Experiment) -> tuple[list[str], bool]:
    for trial in experiment.trials:
        check(trial.config)
    return preflight([trial.config for trial in experiment.trials]), False


def _of_splits(seen: Look) -> Iterator[str]:
    if len(seen.splits) > 1 and not seen.own_splits:
        names = ", ".join(f"{name} ({n})" for name, n in seen.splits.items())
        yield f"the table's splits {names} are not used, for none is called train and none validation: all are dealt to folds"


def _next(out: Path, missing: list[str]) -> Iterator[str]:
    """The commands that come next; first the one that brings what is missing."""
    name = name_of(out)
    if any(experiment.path.name == name for experiment in all_experiments()):
        yield f"note: there is an experiment {name} already, whose trials these join; another name is `experiment:` in {out}"
    yield f"features/ and trained/ lie in {root()}. Next:"
    has_slurm = shutil.which("sbatch")
    local, where = ("", "on Slurm; here: --cluster local") if has_slurm else (" --cluster local", "on this machine")
    file = shlex.quote(str(out))
    commands = [(f"carabid fetch {file}", f"{' and '.join(missing)} are not on this machine")] if missing else []
    commands += [(f"carabid inspect {file}", "what the data look like")]
    commands += [(f"carabid submit {file}{local}", f"trains and evaluates, {where}")]
    commands += [(f"carabid report {name}", "one HTML page")]
    yield from (f"  {command:<44}  # {why}" for command, why in commands)
