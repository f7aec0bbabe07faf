"""The block `tracking`: where the course of a training is shown beside `metrics.jsonl`, which always has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class Tracking(Section):
    """Experiment trackers, through accelerate. Each is a package of its own (`pip install "carabid[tracking]"`)."""

    kind: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = "none"
    """Which. Its files lie in trained/<experiment>/tracking/; a trial is a run, an experiment the group of its runs."""
    project: str = Field("carabid", min_length=1)
    """Of Weights & Biases and trackio: the project that runs stand in."""
    online: bool = False
    """Of Weights & Biases: send while training. false: files alone, which nodes without internet can write, and
    `carabid track sync` sends."""
