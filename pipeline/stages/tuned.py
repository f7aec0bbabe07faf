"""The model that images are indexed and searched with: a trial's two towers as it has tuned them, or a model as it was released;
and what an index keeps of it, to notice another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipeline.backbones import load_backbone, load_towers
from pipeline.backbones.base import Backbone
from pipeline.backbones.named import parse_backbone
from pipeline.backbones.texts import TextTower
from pipeline.config.backbone import Backbone as Block
from pipeline.config.data import Data
from pipeline.config.decoding import Decoding
from pipeline.config.evaluation import Extract
from pipeline.config.identity import digest
from pipeline.config.section import implementation
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.models.content import hash_files, read_record
from pipeline.models.saved import load_model
from pipeline.models.towers import TwoTowers
from pipeline.models.tuned import TunedImages, TunedTexts
from pipeline.stages.embed import UPRIGHT, Tuned, bare_config, weights_of
from pipeline.stages.predict import trained_config, trial_at


@dataclass(frozen=True)
class Released:
    """A model as it was released."""

    name: str
    block: Block
    data: ClassVar[None] = None
    """The data that it was trained on; not known."""
    extract: ClassVar[Extract] = Extract()
    """How else images become features."""
    tuning: ClassVar[None] = None
    """What is made of the backbone before it embeds; nothing."""

    @property
    def decoding(self) -> Decoding:
        """How images are decoded for it."""
        return UPRIGHT

    def record(self) -> dict[str, Any]:
        """What tells it from another one; the weights, embedding finds out."""
        return {"backbone": self.name}

    def images(self) -> Backbone:
        """The image tower."""
        return load_backbone(self.block)

    def texts(self) -> TextTower:
        """The text tower. Raises UserError where there is none."""
        return load_towers(self.block).text


@dataclass(frozen=True)
class Trained:
    """A trial of two towers."""

    trial: TrialDir
    config: Config

    @property
    def name(self) -> str:
        return str(self.trial.path)

    @property
    def block(self) -> Block:
        return self.config.backbone

    @property
    def decoding(self) -> Decoding:
        return self.config.data.decoding

    @property
    def extract(self) -> Extract:
        return self.config.extract

    @property
    def data(self) -> Data:
        return self.config.data

    @property
    def tuning(self) -> Tuned:
        record = self.record()
        return Tuned(self.tuned, digest([record["config_hash"], record["content"]]))

    def record(self) -> dict[str, Any]:
        """Where it is, and the hashes of its configuration and of the files that its model is made of."""
        record, hashes = read_record(self.trial)
        validation = self.trial.validation.name  # calibrates, and embeds nothing
        files = {name: found for name, found in (hashes or hash_files(self.trial)).items() if name != validation}
        return {"trial": str(self.trial.path.resolve()), "config_hash": record["config_hash"], "content": files}

    def images(self) -> Backbone:
        return self.tuned(self._loaded(lambda: load_backbone(self.block)))

    def tuned(self, base: Backbone) -> Backbone:
        """The tuned image tower on that of the backbone. Raises WorkError where it was trained on another."""
        return TunedImages(base, self.model(base, None), self.config)

    def texts(self) -> TextTower:
        towers = self._loaded(lambda: load_towers(self.block))
        return TunedTexts(towers.text, self.model(towers.image, towers.text), self.config)

    def model(self, image: Backbone, text: TextTower | None) -> TwoTowers:
        """The trained model; without `text` it embeds images alone. Raises WorkError where it was trained on other towers."""
        loaded = load_model(self.config, self.trial, image, text)
        assert isinstance(loaded, TwoTowers)
        return loaded

    def _loaded(self, load: Any) -> Any:
        try:
            return load()
        except NotFetched as error:
            error.config = self.trial.config
            raise


Embedder = Released | Trained


def find_model(name: str) -> Embedder:
    """The trial of this path, else the model of this name, as `carabid embed --backbone` takes them. Raises UserError for what is
    neither, and for a trial that reads no texts or corrects its images; WorkError for one that is not trained."""
    if not _is_name(name):
        return trained(Path(name))
    name = _absolute(name)
    return Released(name, parse_backbone(name))


def trained(folder: Path) -> Trained:
    """A trial's two towers; raises as `find_model`."""
    trial = trial_at(folder)
    config = trained_config(trial)
    head = config.model.head
    if not head.reads_texts:
        raise UserError(f"{trial.path}: it has no text tower (task {config.task}): name a trial of configs/species/, or a model")
    if not issubclass(implementation(head.model), TwoTowers):
        raise UserError(
            f"{trial.path}: its head ({head.kind}) leaves the towers as they were released: name the model itself, "
            f"{config.backbone.display_name}, or a trial of model.head.kind contrastive"
        )
    if config.data.colour_card or config.data.scale_bar:
        raise UserError(f"{trial.path} corrects images by a card or a bar, which an index of plain images has not")
    return Trained(trial, config)


def same_model(record: dict[str, Any], moved: Path | None) -> Embedder:
    """The model that an index was made with; `moved` is where its trial is now. Raises UserError where the trial is not there,
    WorkError where it is another one or was trained anew."""
    if "backbone" in record:
        if moved is not None:
            raise UserError(f"--trial {moved}: this index was made with {record['backbone']}, not with a trial")
        return _same_released(record)
    place = moved or Path(record["trial"])
    if moved is None and not TrialDir(place).config.is_file():
        raise UserError(
            f"{place}: the trial that this index was made with is not there any more: say where it is, --trial FOLDER"
        )
    found = trained(place)
    now = found.record()
    if any(now[key] != record[key] for key in ("config_hash", "content")):
        raise WorkError(
            f"{found.trial.path} is not the model that this index was made with: it was trained anew, or is another trial. "
            "`carabid index … --overwrite` makes the index again."
        )
    return found


def _same_released(record: dict[str, Any]) -> Released:
    found = Released(record["backbone"], parse_backbone(record["backbone"]))
    now = weights_of(bare_config(found.block), found.images)
    if (now.weights, now.transform) != (record["weights"], record["transform"]):
        raise WorkError(f"{found.name} has other weights now than this index was made with: `carabid index … --overwrite`")
    return found


def _absolute(name: str) -> str:
    """A model's name; one that names a folder of this machine, from wherever it is read."""
    prefix, colon, rest = name.rpartition(":")
    folder = Path(rest).expanduser()
    names_folder = (not prefix or prefix.endswith(("local-dir", "dinov2"))) and folder.is_dir()
    return f"{prefix}{colon}{folder.resolve()}" if names_folder else name


def _is_name(text: str) -> bool:
    """Whether a text is a model's name rather than a trial's path."""
    try:
        trial_at(Path(text))
    except UserError:
        return ":" in text or "/" not in text or Path(text).expanduser().is_dir() or "dinov2" in text.lower()
    return False
