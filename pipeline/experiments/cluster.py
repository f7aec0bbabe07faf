"""Cluster profiles (configs/cluster/*.yaml): what a site's jobs ask for, and what they do before they begin. Loads no torch.

A profile's `resources` and `paths` lie below an experiment's own: what a YAML or the command line says wins. The rest
becomes lines of the sbatch script, in which every value is quoted.
"""

from __future__ import annotations

import getpass
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from pipeline.config.resources import Job, yielding
from pipeline.config.section import Section
from pipeline.disk.layout import SHIPPED
from pipeline.disk.secrets import hide, is_secret
from pipeline.errors import UserError, nearest
from pipeline.experiments.documents import Layer, read_yaml

FOLDER = SHIPPED / "configs" / "cluster"
STAGES = ("extract", "train", "evaluate", "collect")
DEFAULT = "slurm"
OFFLINE = 'export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"  # nodes have no internet: use what `carabid fetch` brought'
ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._+/-]+$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]


# ---------------------------------------------------------------- environments
class Submitting(Section):
    """The Python that submits runs the jobs too; nothing has to be activated."""

    kind: Literal["submitting"] = "submitting"


class Venv(Section):
    """A virtual environment."""

    kind: Literal["venv"]
    path: OneLine


class Conda(Section):
    """A conda environment, by its name or its folder."""

    kind: Literal["conda"]
    name: OneLine = "carabid"
    command: Literal["conda", "mamba", "micromamba"] = "conda"


class Uv(Section):
    """A project of uv, whose environment is there already (nodes have no internet)."""

    kind: Literal["uv"]
    project: OneLine


class Apptainer(Section):
    """A container image, such as apptainer.def builds."""

    kind: Literal["apptainer"]
    image: OneLine
    binds: tuple[OneLine, ...] = ()
    """Further folders to be seen inside; those of code and results are."""


Environment = Annotated[Submitting | Venv | Conda | Uv | Apptainer, Field(discriminator="kind")]


# ---------------------------------------------------------------- the profile
class Profile(Section):
    """A site, without what its jobs ask for (that goes into each trial's `resources`)."""

    name: str = DEFAULT
    scheduler: Literal["slurm", "local"] = "slurm"
    """local: the stages run on this machine."""
    gpus: Literal["gpus_per_node", "gres"] = "gpus_per_node"
    """How GPUs are asked for: --gpus-per-node=TYPE:N or --gres=gpu:TYPE:N."""
    before: tuple[OneLine, ...] = ()
    """Lines of shell, as they stand, before everything else."""
    modules: tuple[ModuleName, ...] = ()
    """Modules to load."""
    environment: Environment = Submitting()
    """Where Python comes from."""
    variables: dict[VariableName, OneLine] = Field(default_factory=dict)
    """Environment variables of the jobs."""
    proxy: OneLine | None = None
    """Web proxy of the compute nodes. One with a password is refused: set https_proxy in your shell, which jobs inherit."""
    root: str | None = None
    """Where features/ and trained/ lie unless CARABID_ROOT is set: scratch, as home folders have quotas."""

    @field_validator("variables")
    @classmethod
    def _no_token(cls, variables: dict[str, str]) -> dict[str, str]:
        if secret := [name for name, value in variables.items() if is_secret(name, value) or hide(value) != value]:
            raise ValueError(f"a profile may not hold a secret ({', '.join(secret)}): `hf auth login` keeps a token")
        return variables

    @field_validator("before")
    @classmethod
    def _no_password(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if secret := [line for line in lines if hide(line) != line]:
            raise ValueError(
                f"a profile may not hold a secret ({hide(secret[0])}): keep it in a file that you alone may read, or in the "
                "environment of your shell, which jobs inherit"
            )
        return lines


OF_EXPERIMENTS = {"base", "task", "experiment", "data", "backbone", "model", "grid", "variants"}
"""What an experiment's says, and a profile's never."""


@dataclass(frozen=True)
class Cluster:
    """A profile, and the layer of configuration that it puts below an experiment's own."""

    profile: Profile
    layer: Layer


_roots: set[str] = set()
"""What this process has put into CARABID_ROOT."""


def known_profiles() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_cluster(name: str | None = None, environ: Mapping[str, str] = os.environ) -> Cluster:
    """The profile of that name, or the YAML at that path; default: $CARABID_CLUSTER, else `slurm`.

    Raises UserError naming the profiles there are, or the key that is wrong with its file and line.
    """
    wanted = name or environ.get("CARABID_CLUSTER") or DEFAULT
    if wanted == DEFAULT and not FOLDER.is_dir():  # a snapshot of the code: the default needs no file
        return Cluster(Profile(), Layer())
    path = _find(wanted)
    values, places = read_yaml(path)
    if values.keys() & OF_EXPERIMENTS:
        there = ", ".join(known_profiles())
        raise UserError(f"--cluster {wanted}: {path} is an experiment, and no cluster profile; there are: {there}")
    places = {key: f"{path}, {line}" for key, line in places.items()}
    try:
        own = {key: value for key, value in values.items() if key not in ("resources", "paths")}
        profile = Profile.model_validate({"name": path.stem} | _expanded(own))
    except ValidationError as error:
        raise UserError("\n".join(_in_words(details, places, path) for details in error.errors())) from None
    return Cluster(profile, _layer(values, places, path))


def use_root(profile: Profile) -> None:
    """Let this process, and what it starts, look where the profile says, unless CARABID_ROOT says otherwise.

    A profile that is named with a command comes after the one that CARABID_CLUSTER names, and replaces its root.
    """
    if profile.root and os.environ.get("CARABID_ROOT") in (None, "", *_roots):
        _roots.add(profile.root)
        os.environ["CARABID_ROOT"] = profile.root


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(os.path.expanduser(name)).resolve()
    elif "/" in name:
        raise UserError(f"--cluster {name}: name a profile ({', '.join(known_profiles())}) or a file that ends in .yaml")
    else:
        path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"--cluster {name}: there is no cluster profile {path}; {nearest(name, known_profiles())}")
    return path


def _expanded(values: dict[str, Any]) -> dict[str, Any]:
    """$USER and ~ in `root`, now: commands on the login node look there too."""
    if isinstance(values.get("root"), str):
        root = Template(values["root"]).safe_substitute({"USER": getpass.getuser(), **os.environ})
        values = {**values, "root": os.path.expanduser(root)}
        if "$" in values["root"] or not os.path.isabs(values["root"]):
            raise UserError(f"root of a cluster profile must be an absolute path of set variables: {values['root']}")
    return values


def _layer(values: dict[str, Any], places: dict[str, str], path: Path) -> Layer:
    """`resources` with what stands under `all` put under each stage, and `paths`."""
    resources, paths = values.get("resources") or {}, values.get("paths") or {}
    shared, *jobs = [resources.get(name) or {} for name in ("all", *STAGES)] if isinstance(resources, dict) else [resources]
    if not all(isinstance(block, dict) for block in (paths, shared, *jobs)):
        raise UserError(f"{path}: paths, resources, resources.all, … are blocks of keys: {', '.join(Job.model_fields)}")
    resources = {key: value for key, value in resources.items() if key != "all"}
    merged = {
        stage: {**yielding(shared, job), **job} for stage, job in zip(STAGES, jobs, strict=True) if shared or stage in resources
    }
    below = {"resources": {**resources, **merged}, "paths": paths}
    spread = {
        f"resources.{stage}.{key}": places.get(f"resources.all.{key}", str(path))
        for stage in STAGES
        for key in shared
        if f"resources.{stage}.{key}" not in places
    }
    # `all` is a word of profiles alone: an experiment that has such a key must not be sent to this file.
    own = {key: place for key, place in places.items() if not key.startswith("resources.all")}
    return Layer(below, {**own, **spread})


def _in_words(details: Any, places: Mapping[str, str], path: Path) -> str:
    # pydantic puts a union's `kind` into the place; a user did not write it there.
    parts = [str(part) for part in details["loc"]]
    key = ".".join(part for n, part in enumerate(parts) if not (n == 1 and parts[0] == "environment"))
    place = next((places[k] for k in (key, key.rpartition(".")[0]) if k in places), str(path))
    if details["type"] == "extra_forbidden":
        return f"{place}: `{key}` does not exist; {nearest(key, [*Profile.model_fields, 'resources', 'paths'])}"
    message = details["msg"].removeprefix("Value error, ")
    secret = details["type"] == "value_error"  # what was refused may be a password: it is not to be seen in a log
    return f"{place}: `{key}`: {message}" + ("" if secret else f" (given: {details['input']!r:.100})")


# ---------------------------------------------------------------- lines of a script
def setup_lines(profile: Profile, code: Path, root: Path) -> list[str]:
    """What a job does before its command: modules, environment, variables, and the folder of the code that it runs.

    The code comes last: no activation may put another `pipeline` before it.
    """
    proxy = {name: profile.proxy for name in ("http_proxy", "https_proxy") if profile.proxy}
    variables = {**profile.variables, **proxy, "CARABID_ROOT": str(root)}
    return [
        *profile.before,
        *(f"{line} || exit 1" for line in _activation(profile)),
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
        OFFLINE,
        f"cd {shlex.quote(str(code))} || exit 1",
    ]


def _activation(profile: Profile) -> Iterator[str]:
    environment = profile.environment
    yield from (f"module load {name}" for name in profile.modules)
    if environment.kind == "venv":
        yield f"source {shlex.quote(_absolute(environment.path) + '/bin/activate')}"
    elif environment.kind == "conda" and environment.command == "micromamba":
        yield f'eval "$(micromamba shell hook --shell bash)" && micromamba activate {shlex.quote(environment.name)}'
    elif environment.kind == "conda":
        yield f'eval "$({environment.command} shell.bash hook)" && conda activate {shlex.quote(environment.name)}'


def python_command(profile: Profile, code: Path, folders: Callable[[], Sequence[Path]]) -> str:
    """How a job starts Python, as shell code; `folders` tells, where that matters, what it must see."""
    environment = profile.environment
    if environment.kind == "uv":
        return shlex.join(["uv", "run", "--no-sync", "--project", _absolute(environment.project), "python"])
    if environment.kind == "apptainer":
        binds = [f"--bind={folder}" for folder in dict.fromkeys((*map(str, folders()), *environment.binds))]
        return shlex.join(["apptainer", "exec", "--nv", *binds, f"--pwd={code}", _absolute(environment.image), "python"])
    return shlex.quote(sys.executable) if environment.kind == "submitting" else "python"


def _absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def gpu_option(profile: Profile, job: Job) -> dict[str, str]:
    """The sbatch option, without dashes, that asks for a job's GPUs; none if it needs none. A `gres` of its own stays beside."""
    if not job.gpus_per_node:
        return {}
    wanted = f"{job.gpu_type}:{job.gpus_per_node}" if job.gpu_type else str(job.gpus_per_node)
    others = f",{job.sbatch['gres']}" if job.sbatch.get("gres") else ""
    return {"gres": f"gpu:{wanted}{others}"} if profile.gpus == "gres" else {"gpus-per-node": wanted}
