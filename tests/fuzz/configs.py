"""Configurations, overrides and cluster profiles as they are mistyped."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import yaml

from pipeline.cli.arguments import load
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.experiments.cluster import gpu_option, load_cluster, python_command, setup_lines
from pipeline.experiments.documents import YamlDumper
from pipeline.experiments.mistakes import field_names
from pipeline.experiments.reading import dump_config, load_config, load_experiment
from tests.fuzz.values import TEXTS, VALUES, mistyped, spoil, spoil_text
from tests.fuzz.verdict import Case

KEYS = (*sorted(set(field_names(Config))), "grid", "variants", "base", "optim", "model", "data", "data.columns", "")

LORA = PROJECT / "configs" / "beetles" / "lora.yaml"
OTHERS = (
    """resources:
  all: {reservation: r, exclude: "n[1-3]", nodelist: n4, mem_per_cpu: 4G, licenses: "a:1", tmp: 20G, nice: 5, comment: a b}
  train: {mem: 8G, gpu_bind: closest, mail_type: "END,FAIL", mail_user: a@b.org, sbatch: {exclusive: true, switches: 1}}
  collect: {mem_per_gpu: 4G, mem_per_cpu: null, sbatch: {gres: "nvme:1"}}
""",
)
"""Profiles with the keys that no shipped one has."""


@cache
def stock(folder: str) -> tuple[str, ...]:
    """The YAMLs that the project ships, as text."""
    paths = sorted((PROJECT / "configs").rglob("*.yaml"))
    return tuple(path.read_text() for path in paths if (path.parent.name == "cluster") == (folder == "cluster"))


def config_case(number: int, draw: random.Random, place: Path) -> Case:
    """A YAML, spoilt or not, with overrides, spoilt or not."""
    path = place / "spoilt.yaml"
    path.write_bytes(spoilt(draw, "experiments").encode(errors="surrogatepass"))
    overrides = [override(draw) for _ in range(draw.choice((0, 0, 1, 2, 3)))]
    return Case(
        f"configs {number}", lambda: load_and_keep(path, overrides), (path.name, "on the command line", "override", "grid")
    )


def profile_case(number: int, draw: random.Random, place: Path) -> Case:
    """A cluster profile, spoilt."""
    path = place / "site.yaml"
    path.write_bytes(spoilt(draw, "cluster", OTHERS).encode(errors="surrogatepass"))
    return Case(f"profiles {number}", lambda: load_profile(path), (path.name, "cluster profile"))


def spoilt(draw: random.Random, folder: str, more: tuple[str, ...] = ()) -> str:
    """One of the project's own YAMLs, or of these, with up to three things wrong in its tree, up to two in its text."""
    text = draw.choice((*stock(folder), *more))
    tree = yaml.safe_load(text)
    if draw.random() < 0.8:
        for _ in range(draw.randrange(1, 4)):
            spoil(tree, draw)
        text = yaml.dump(tree, Dumper=YamlDumper, sort_keys=False, allow_unicode=True)
    for _ in range(draw.choice((0, 0, 1, 2))):
        text = spoil_text(text, draw)
    return text


def override(draw: random.Random) -> str:
    """`key=value` as it is mistyped."""
    key = draw.choice(KEYS)
    if draw.random() < 0.2:
        key = mistyped(key, draw)
    value = draw.choice(TEXTS) if draw.random() < 0.5 else str(draw.choice(VALUES))
    return draw.choice((f"{key}={value}", f"{key}={value},{draw.choice(VALUES)}", f"{key}=[{value}]", key, f"{key}.x={value}"))


def load_and_keep(path: Path, overrides: list[str]) -> None:
    """As every command reads a configuration; what is accepted and written down gives the same trial again."""
    experiment = load(str(path), overrides, load_cluster("local"))
    saved = path.with_name("config.yaml")
    for trial in experiment.trials[:2]:
        saved.write_text(dump_config(trial.config))
        assert load_config(saved) == trial.config, f"read again it is another trial: {saved.read_text()}"


def load_profile(path: Path) -> None:
    cluster = load_cluster(str(path))
    setup_lines(cluster.profile, PROJECT, PROJECT)
    python_command(cluster.profile, PROJECT, lambda: [PROJECT])
    resources = load_experiment(LORA, [], cluster.layer).config.resources
    for job in (resources.extract, resources.train, resources.evaluate, resources.collect):
        gpu_option(cluster.profile, job)
        lines = [line for value in job.options.values() for line in str(value).splitlines()]
        assert len(lines) == len(job.options) and not any("\\" in line for line in lines), lines
