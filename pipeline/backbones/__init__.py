"""Backbones: pretrained image encoders behind one interface (`base.Backbone`), whatever library they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import config as configuration

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone


def load_backbone(config: configuration.Backbone) -> Backbone:
    """The backbone a configuration names: eval mode, no gradients, fp32, on the CPU; torch's random state is left as it was.

    Raises UserError where the name, the folder or the cache does not lead to usable weights.
    """
    # Imported here because each library costs seconds, and a trial needs one of them.
    if isinstance(config, configuration.OpenClip):
        from pipeline.backbones.open_clip import load_open_clip

        return load_open_clip(config)
    if isinstance(config, configuration.Dinov2):
        from pipeline.backbones.dinov2 import load_dinov2

        return load_dinov2(config)
    from pipeline.backbones.pixels import PixelsBackbone

    return PixelsBackbone(config.size).freeze()
