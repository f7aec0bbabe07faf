"""Backbones: pretrained image encoders behind one interface (`base.Backbone`), whatever library they come from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import hub
from pipeline.config import backbone as blocks

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone


def load_backbone(config: blocks.Backbone) -> Backbone:
    """The backbone a configuration names: eval mode, no gradients, fp32, on the CPU; torch's random state is left as it was.

    Raises UserError where the name or the folder does not lead to usable weights, NotFetched where the cache does not.
    """
    # Imported here because each library costs seconds, and a trial needs one of them.
    if isinstance(config, blocks.OpenClip):
        from pipeline.backbones.open_clip import load_open_clip

        return load_open_clip(config)
    if isinstance(config, blocks.Dinov2):
        from pipeline.backbones.dinov2 import load_dinov2

        return load_dinov2(config)
    if isinstance(config, blocks.Timm):
        from pipeline.backbones.timm_models import load_timm

        return load_timm(config)
    if isinstance(config, blocks.Concat):
        from pipeline.backbones.concat import ConcatBackbone

        return ConcatBackbone([load_backbone(part) for part in config.parts]).freeze()
    from pipeline.backbones.pixels import PixelsBackbone

    return PixelsBackbone(config.size).freeze()


def weights_files(config: blocks.Backbone) -> list[Path]:
    """The files that weights and transform are read from, as far as they are here; none for what is made without any."""
    if isinstance(config, blocks.Concat):
        return [file for part in config.parts for file in weights_files(part)]
    if isinstance(config, blocks.Pixels):
        return []
    if isinstance(config, blocks.Dinov2):
        return _local_files(config.name) or hub.snapshot_files(config.name, config.revision)
    if config.name.startswith("hf-hub:"):
        return hub.snapshot_files(config.name.removeprefix("hf-hub:"), None)
    if config.name.startswith("local-dir:"):
        return _local_files(config.name.removeprefix("local-dir:"))
    if isinstance(config, blocks.Timm):
        return _files_of_timm(config.name) if config.pretrained else []
    if config.pretrained is None:
        return []
    return _local_files(config.pretrained) or _files_of_tag(config.name, config.pretrained)


def _local_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.is_file()]


def _files_of_tag(architecture: str, tag: str) -> list[Path]:
    from pipeline.backbones.open_clip import hub_repository

    repository = hub_repository(architecture, tag)
    return hub.snapshot_files(repository, None) if repository else []


def _files_of_timm(name: str) -> list[Path]:
    from pipeline.backbones.timm_models import hub_repository

    repository = hub_repository(name)
    return hub.snapshot_files(repository, None) if repository else []
