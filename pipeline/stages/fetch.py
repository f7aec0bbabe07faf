"""Bringing data and weights into the cache on a node that has internet, so that jobs run without."""

from __future__ import annotations

from functools import partial

from pipeline.backbones import load_backbone
from pipeline.config import Config
from pipeline.records import data_record, weights_record
from pipeline.tasks import load_task


def run(config: Config) -> None:
    """Download (or find) the data set and the backbone's weights, and keep their content hashes for later."""
    dataset = load_task(config.task).load(config.data)
    data = data_record(config, dataset)
    print(f"data: {config.data.source}: {data.n} images, content {data.content[:12]}", flush=True)
    weights = weights_record(config, partial(load_backbone, config.backbone))
    name = config.backbone.kind if config.backbone.kind == "pixels" else config.backbone.name
    print(f"backbone: {name}: weights {weights.weights[:12]}", flush=True)
