"""What the checks of `carabid doctor` start from (`Context`), and what they give (`Finding`). Loads no torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pipeline.config.resources import Job
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import Experiment, Trial
from pipeline.launch.doctor import probe
from pipeline.launch.manifest.manifest import Manifest, preview_manifest
from pipeline.launch.scheduler import site
from pipeline.launch.submitting.submit import Request
from pipeline.launch.watching.plan import missing_trials

FETCH = "`carabid fetch CONFIG …` (the same arguments)"
Verdict = Literal["ok", "warn", "FAIL", "skip"]


@dataclass(frozen=True)
class Finding:
    """One finding: how it stands with what, and what to do where it is not well."""

    verdict: Verdict
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict:<6}{self.what}: {' '.join(self.text.split())}"


@dataclass
class Context:
    """What is checked, how, and what an earlier check has found out for a later one."""

    experiment: Experiment
    profile: Profile
    look: bool = True
    """Whether to run a small job on a node."""
    patience: float = 120
    """Seconds that this job may wait for a free node."""
    nodes: Sequence[site.Nodes] = ()
    """All that Slurm has; found by the check of partitions."""
    seen: probe.Seen | None = None
    """What that job saw; found by the check of a node."""

    @cached_property
    def trials(self) -> list[Trial]:
        """What a submission would queue now; all trials where that is nothing."""
        return missing_trials(self.experiment) or self.experiment.trials

    @cached_property
    def manifest(self) -> Manifest:
        return preview_manifest(self.experiment, self.trials, Request(self.profile).terms(self.experiment, self.trials))

    @property
    def local(self) -> bool:
        return self.profile.scheduler == "local"

    @property
    def no_slurm(self) -> str:
        """Why Slurm is not asked; empty where it is."""
        if self.local:
            return "stages run on this machine"
        return "" if shutil.which("sbatch") else "there is no sbatch here: run this on the cluster's login node"

    def job(self, stage: str) -> Job:
        """What a stage asks Slurm for."""
        return self.experiment.config.job(stage)
