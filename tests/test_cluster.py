"""Cluster profiles, and the sbatch scripts that come of them: whole texts, and every value quoted."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config.identity import config_hash
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError
from pipeline.experiments import cluster
from pipeline.experiments.cluster import Profile, known_profiles, load_cluster, use_root
from pipeline.experiments.reading import dump_config, load_config, load_experiment
from pipeline.launch.manifest.manifest import Terms, preview_manifest
from pipeline.launch.submitting import sbatch as slurm

pytestmark = pytest.mark.jobs

GOLDEN = Path(__file__).parent / "golden"
LORA = PROJECT / "configs" / "beetles" / "lora.yaml"


def scripts(profile: str | Path, *overrides: str, pack: int = 1) -> str:
    """Every script of a submission, as `submit --dry-run` shows them, with this machine's places by names."""
    site = load_cluster(str(profile))
    experiment = load_experiment(LORA, overrides, site.layer)
    manifest = preview_manifest(experiment, experiment.trials, Terms(site.profile, 1001, pack))
    made = slurm.scripts(manifest, slurm.chain(manifest))
    return "".join(f"──── {stage}\n{script}" for stage, script in made)


# ---------------------------------------------------------------- golden files
@pytest.mark.parametrize("name", [name for name in known_profiles() if name != "local"])
def test_the_scripts_of_a_profile_are_these(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole text, so that no change of it passes unseen. A new text is written by hand, after it was read."""
    monkeypatch.setenv("CARABID_ROOT", "/scratch/lab/carabid")
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("HOME", "/people/ada")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/people/ada/.cache/huggingface/hub")
    monkeypatch.setattr(cluster.sys, "executable", "/people/ada/env/bin/python")
    text = scripts(name, "optim.lr=1e-3,3e-3", "seed=0,1", pack=2)
    assert text == (GOLDEN / f"{name}.txt").read_text()


# ---------------------------------------------------------------- quoting
PIECES = [*" '\"$`\\;&|<>(){}[]*?!#~=%\n\t", "$(touch hit)", "`touch hit`", "; touch hit;", "\ntouch hit\n", "é", "a"]
NASTY = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)
RECORDS = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$#" "$@" && env -0 && printf '\\0'; } >> "$SEEN"
"""
"""A name, how many arguments, these, the variables, nothing; all ended by NUL. In bash: a Python would take ten times as long."""


def recording(folder: Path, *commands: str) -> None:
    """Commands that write down how they were called."""
    folder.mkdir(exist_ok=True)
    for name in commands:
        (folder / name).write_text(RECORDS)
        (folder / name).chmod(0o755)


def run_script(script: str, folder: Path) -> list[tuple[str, list[str], dict[str, str]]]:
    """What a script calls, with which arguments and in which environment."""
    seen = folder / "seen"
    seen.write_text("")
    environ = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SEEN": str(seen), "SLURM_JOB_ID": "1"}
    subprocess.run(["bash", "-c", script], env=environ, cwd=folder, capture_output=True, timeout=20)
    assert not (folder / "hit").exists(), script
    return list(calls(iter(seen.read_bytes().decode().split("\0"))))


def calls(fields: Iterator[str]) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """What RECORDS has written."""
    while command := next(fields, ""):
        arguments = list(islice(fields, int(next(fields))))
        yield command, arguments, dict(variable.split("=", 1) for variable in iter(lambda: next(fields), ""))


@given(NASTY, NASTY, NASTY)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("kind", ["venv", "conda", "uv", "apptainer", "submitting"])
def test_nothing_that_a_profile_or_a_path_holds_is_read_by_a_shell(
    tmp_path: Path, kind: str, place: str, name: str, value: str
) -> None:
    """Metacharacters, spaces, quotes and line ends arrive as they are, or are refused; none is ever run."""
    recording(tmp_path / "bin", "srun", "conda", "module")
    root = tmp_path / place.replace("/", "_")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        check_script(tmp_path, kind, name, value)


def check_script(tmp_path: Path, kind: str, name: str, value: str) -> None:
    environment = {
        "venv": {"path": f"{tmp_path}/env{name}"},
        "conda": {"name": name},
        "uv": {"project": f"/{name}"},
        "apptainer": {"image": f"/{name}"},
        "submitting": {},
    }[kind]
    try:
        profile = Profile.model_validate({"environment": {"kind": kind, **environment}, "variables": {"NOTE": value}})
        experiment = load_experiment(LORA, [])
        manifest = preview_manifest(experiment, experiment.trials, Terms(profile))
        script = dict(slurm.scripts(manifest, slurm.chain(manifest)))["train"]
    except (ValueError, UserError):
        assert re.search(r"[\x00-\x1f\x7f%\\]", os.environ["CARABID_ROOT"] + name + value)
        return
    manifest.code.mkdir(parents=True, exist_ok=True)
    (tmp_path / f"env{name}" / "bin").mkdir(parents=True, exist_ok=True)
    (tmp_path / f"env{name}" / "bin" / "activate").write_text("export ACTIVATED=yes\n")
    called = {command: (arguments, environ) for command, arguments, environ in run_script(script, tmp_path)}
    arguments, environ = called["srun"]
    assert environ["NOTE"] == value and environ["CARABID_ROOT"] == str(experiment.dir.path.parent.parent)
    assert environ["PYTHONPATH"] == str(manifest.code)
    assert arguments[-1] == str(manifest.experiment.stage_logs(manifest.number, "train"))
    assert (environ.get("ACTIVATED") == "yes") == (kind == "venv")
    if kind == "apptainer":
        assert os.path.normpath(f"/{name}") in arguments and f"--bind={manifest.code}" in arguments
    if kind == "uv":
        assert os.path.normpath(f"/{name}") in arguments


@given(NASTY)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("key", ["partition", "qos", "exclude", "gpu_bind", "comment", "sbatch.switches"])
def test_what_stands_in_a_line_of_a_script_cannot_begin_another(tmp_path: Path, root: Path, key: str, value: str) -> None:
    recording(tmp_path / "bin", "srun")
    try:
        experiment = load_experiment(LORA, [f"resources.train.{key}={json.dumps(value)}"])
    except UserError:
        assert re.search(r"[^!-~]|\\", value) or value[:1] in "[{"
        return
    manifest = preview_manifest(experiment, experiment.trials, Terms())
    script = dict(slurm.scripts(manifest, slurm.chain(manifest)))["train"]
    manifest.code.mkdir(parents=True, exist_ok=True)
    option = key.removeprefix("sbatch.").replace("_", "-")
    assert [line for line in script.split("\n") if line.startswith(f"#SBATCH --{option}=")] == [
        f"#SBATCH --{option}={shlex.quote(value)}"
    ]
    assert [command for command, *_ in run_script(script, tmp_path)] == ["srun"]


@given(NASTY)
@settings(deadline=None, max_examples=40)
def test_overrides_stand_in_no_script(value: str) -> None:
    """They are in the manifest: what a person types never comes to a shell that carabid starts."""
    experiment = load_experiment(LORA, [f"data.source={json.dumps(value)}"])
    plain = load_experiment(LORA, [])
    texts = []
    for each in (experiment, plain):
        manifest = preview_manifest(each, each.trials, Terms())
        texts.append("".join(script for _, script in slurm.scripts(manifest, slurm.chain(manifest))))
    assert texts[0] == texts[1]


# ---------------------------------------------------------------- what jobs ask for
def asked(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.split("\n") if line.startswith("#SBATCH ")}


def script_of_training(*overrides: str, pack: int = 1, gpus: str = "gpus_per_node") -> set[str]:
    """The options of a training's script; `…` stands for resources.train."""
    experiment = load_experiment(LORA, [each.replace("…", "resources.train") for each in overrides])
    terms = Terms(Profile.model_validate({"gpus": gpus}), 1001, pack)
    manifest = preview_manifest(experiment, experiment.trials, terms)
    return asked(dict(slurm.scripts(manifest, slurm.chain(manifest)))["train"])


def test_slurms_own_names_are_keys_and_any_other_option_stands_under_sbatch() -> None:
    keys = {"exclude": "n1,n[3-5]", "nodelist": "n7", "reservation": "lab_7", "mail_type": "END,FAIL", "nice": 100,
            "mail_user": "a@lab.org", "tmp": "20G", "licenses": "matlab:2", "gpu_bind": "closest", "account": "lab"}  # fmt: skip
    others = "{exclusive: true, switches: 1@10:00, wckey: beetles, contiguous: false, core_spec: 2}"
    made = script_of_training(*(f"….{key}={json.dumps(value)}" for key, value in keys.items()), f"….sbatch={others}")
    wanted = {f"--{key.replace('_', '-')}={shlex.quote(str(value))}" for key, value in keys.items()}
    assert wanted | {"--exclusive", "--switches=1@10:00", "--wckey=beetles", "--core-spec=2"} <= made
    assert not any("contiguous" in option for option in made), "an option of a profile can be taken back"
    assert "--comment='it'\"'\"'s #1, in $HOME'" in script_of_training('….comment="it\'s #1, in $HOME"')


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("array: 0-3", "array is set by carabid: it makes the arrays"),
        ("dependency: 'afterok:7'", "dependency is set by carabid"),
        ("output: /tmp/x", "output is set by carabid: `carabid status` and `carabid logs` look"),
        ("job-name: mine", "finds its jobs by their names"),
        ("job_name: mine", "finds its jobs by their names"),
        ("no-requeue: true", "queues itself again"),
        ("nodes: 2", "one process on one node"),
        ("gpus: 2", "gpus_per_node and gpu_type"),
        ("gres: 'gpu:2'", "gpus_per_node and gpu_type"),
        ("export: NONE", "`variables`"),
        ("wait: true", "reads sbatch's answer"),
        ("clusters: other", "SLURM_CLUSTERS"),
        ("partition: gpu", "partition has a key of its own: set partition beside sbatch"),
        ("mem-per-cpu: 4G", "set mem_per_cpu beside sbatch"),
        ("gpus-per-node: 2", "set gpus_per_node beside sbatch"),
        ("arr: 0-3", "write the option's whole name: array?"),
        ("depend: singleton", "dependency?"),
        ("p: gpu", "is no long name"),
        ("'a b': 1", "is no long name"),
        ("'x=1 --array': 3", "is no long name"),
        ('switches: "1\\n#SBATCH --array=0-9"', "resources.train.sbatch"),
        ("switches: [1, 2]", "resources.train.sbatch"),
        ("switches: null", "resources.train.sbatch"),
    ],
)
def test_an_option_that_carabid_sets_itself_or_has_a_key_for_is_refused_with_the_reason(option: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_experiment(LORA, [f"resources.train.sbatch={{{option}}}"])
    assert "on the command line: `resources.train.sbatch" in str(caught.value)


def test_a_device_that_is_no_gpu_is_asked_for_beside_the_gpus() -> None:
    assert "--gres=gpu:a100:1,nvme:100" in script_of_training("….gpu_type=a100", "….sbatch={gres: 'nvme:100'}", gpus="gres")
    assert {"--gres=nvme:100", "--gpus-per-node=1"} <= script_of_training("….sbatch={gres: 'nvme:100'}")


# ---------------------------------------------------------------- memory
def memory_of(options: set[str]) -> set[str]:
    return {option for option in options if option.startswith("--mem")}


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), {"--mem=32G"}),
        (("….mem_per_cpu=3G",), {"--mem-per-cpu=3G"}),
        (("….mem_per_gpu=40G",), {"--mem-per-gpu=40G"}),
        (("….mem_per_gpu=40G", "….gpus_per_node=0"), {"--mem=32G"}),
        (("….mem=null",), set()),
    ],
)
@pytest.mark.parametrize("pack", [1, 4])
def test_memory_is_asked_for_in_one_way(overrides: tuple[str, ...], wanted: set[str], pack: int) -> None:
    """Of several trials one after another as of one."""
    assert memory_of(script_of_training(*overrides, pack=pack)) == wanted


@pytest.mark.parametrize("other", ["mem_per_cpu", "mem_per_gpu"])
def test_two_ways_of_asking_for_memory_at_one_place_are_refused(other: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"mem and {other} exclude one another"):
        load_experiment(LORA, ["resources.train.mem=8G", f"resources.train.{other}=2G"])
    with pytest.raises(UserError, match=r"mem and mem_per_\w+ exclude one another|mem_per_cpu and mem_per_gpu"):
        load_experiment(LORA, [], load_cluster(str(write(tmp_path, f"resources: {{all: {{mem: 8G, {other}: 2G}}}}\n"))).layer)


def test_of_two_places_the_one_that_wins_says_how_memory_is_asked_for(tmp_path: Path) -> None:
    """A site that counts memory per CPU, a stage of it that does not, and an experiment that knows better."""
    site = load_cluster(str(write(tmp_path, "resources:\n  all: {mem_per_cpu: 4G}\n  evaluate: {mem: 9G}\n"))).layer
    resources = load_experiment(LORA, ["resources.train.mem=50G"], site).config.resources
    asks = {stage: [getattr(getattr(resources, stage), key) for key in ("mem", "mem_per_cpu")] for stage in cluster.STAGES}
    assert asks == {"extract": [None, "4G"], "train": ["50G", None], "evaluate": ["9G", None], "collect": [None, "4G"]}
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"base: {LORA}\nresources: {{extract: {{mem_per_gpu: 7G}}}}\n")
    assert load_experiment(mine, [], site).config.resources.extract.mem_per_cpu is None


def test_what_jobs_ask_for_is_the_same_when_it_is_read_again_and_no_part_of_a_trial(tmp_path: Path) -> None:
    plain, saved = load_experiment(LORA), tmp_path / "config.yaml"
    for more in ("mem_per_cpu=2G", "mem=null", "mem_per_gpu=8G", "sbatch={exclusive: true, switches: 1}", "exclude=n1"):
        config = load_experiment(LORA, [f"resources.{stage}.{more}" for stage in ("train", "collect")]).config
        saved.write_text(dump_config(config))
        assert load_config(saved) == config, more
        assert config_hash(config) == config_hash(plain.config)


# ---------------------------------------------------------------- profiles
def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_an_experiments_own_resources_win_over_the_profiles_and_those_over_the_defaults(tmp_path: Path) -> None:
    site = write(
        tmp_path,
        "paths: {features: /big/features}\nresources:\n  all: {account: lab, mem: 10G}\n  train: {mem: 20G, time: 1-00:00:00}\n",
    )
    config = load_experiment(LORA, ["resources.train.mem=30G"], load_cluster(str(site)).layer).config
    assert (config.resources.train.mem, config.resources.train.time) == ("30G", "1-00:00:00")
    assert (config.resources.extract.mem, config.resources.evaluate.time) == ("10G", "01:00:00")
    assert {getattr(config.resources, stage).account for stage in cluster.STAGES} == {"lab"}
    assert config.resources.collect.gpus_per_node == 0 and config.paths.features == "/big/features"


def test_a_key_called_all_in_an_experiment_is_not_blamed_on_the_profile(tmp_path: Path) -> None:
    site = write(tmp_path, "resources:\n  all: {account: lab}\n")
    with pytest.raises(UserError, match=r"^on the command line: `resources\.all\.mem` does not exist"):
        load_experiment(LORA, ["resources.all.mem=8G"], load_cluster(str(site)).layer)


def test_naming_one_amount_of_a_stage_leaves_its_other_defaults() -> None:
    resources = load_experiment(LORA, ["resources.collect.mem=8G", "resources.evaluate.mem=8G"]).config.resources
    assert resources.collect.gpus_per_node == 0 and resources.evaluate.time == "01:00:00"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: gres\n", r"mine\.yaml, line 1: `gpu` does not exist; did you mean gpus\?"),
        ("gpus: four\n", r"mine\.yaml, line 1: `gpus`"),
        ("resources:\n  all: {partitoin: gpu}\n", r"mine\.yaml, line 2: .*partition"),
        ("environment: {kind: conda, nme: x}\n", r"mine\.yaml, line 1: `environment\.nme`"),
        ("environment: {kind: docker}\n", r"mine\.yaml, line 1: .*docker"),
        ("modules: ['a; rm -rf /']\n", r"line 1: `modules"),
        ("variables: {WANDB_API_KEY: hf_x}\n", r"a profile may not hold a secret \(WANDB_API_KEY\)"),
        ("variables: {DBPASS: hunter2}\n", r"mine\.yaml, line 1: a token or password must not stand in a configuration"),
        ("before:\n- curl --user me:correcthorse https://x\n", r"mine\.yaml, line 2: a token or password must not stand"),
        ("before:\n- aws configure set aws_secret_access_key correcthorse\n", r"mine\.yaml, line 2: a token or password"),
        (
            "before:\n- curl --user\n  me:correcthorse x\n",
            r"`before`: a profile may not hold a secret \(curl --user \[hidden\] x\)",
        ),
        ("variables:\n  DBPASS:\n    correcthorse\n", r"a profile may not hold a secret \(DBPASS\)"),
        ("variables:\n  X: curl --user\n    me:correcthorse x\n", r"a profile may not hold a secret \(X\)"),
        ("variables: {HF_TOKEN: hf_x}\n", r"line 1: `variables`: a profile may not hold a secret \(HF_TOKEN\)"),
        ("proxy: http://ada:pass@proxy:3128\n", r"line 1: .*password"),
        ("root: scratch\n", "absolute"),
        ("root: /scratch/$NOT_SET_ANYWHERE\n", "NOT_SET_ANYWHERE"),
        ("resources: {train: 4}\n", "blocks of keys"),
    ],
)
def test_a_mistake_in_a_profile_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_experiment(LORA, [], load_cluster(str(write(tmp_path, text))).layer)
    assert "hf_x" not in str(caught.value) and "ada:pass" not in str(caught.value)
    assert "correcthorse" not in str(caught.value)


def test_an_unknown_profile_is_answered_with_those_there_are() -> None:
    with pytest.raises(UserError, match="did you mean slurm"):
        load_cluster("slrum")
    with pytest.raises(UserError, match=r"there are: .*hipergator.*local.*osc.*slurm"):
        load_cluster("zzz")


def test_the_environment_names_the_profile_where_the_command_line_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARABID_CLUSTER", "local")
    assert load_cluster().profile.scheduler == "local" and load_cluster("slurm").profile.scheduler == "slurm"
    monkeypatch.setenv("CARABID_CLUSTER", "")
    assert load_cluster().profile.name == "slurm"


def test_the_root_of_a_profile_knows_variables_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("HOME", "/people/ada")
    assert load_cluster(str(write(tmp_path, "root: /scratch/$USER/c\n"))).profile.root == "/scratch/ada/c"
    assert load_cluster(str(write(tmp_path, "root: ~/c\n"))).profile.root == "/people/ada/c"


def test_a_profile_named_with_a_command_replaces_the_root_of_the_one_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CARABID_ROOT", raising=False)
    monkeypatch.setattr(cluster, "_roots", set())
    for root in ("/one", "/other"):
        use_root(load_cluster(str(write(tmp_path, f"root: {root}\n"))).profile)
        assert os.environ["CARABID_ROOT"] == root
    use_root(load_cluster(str(write(tmp_path, "scheduler: slurm\n"))).profile)
    assert os.environ["CARABID_ROOT"] == "/other"
    monkeypatch.setenv("CARABID_ROOT", "/mine")
    use_root(load_cluster(str(write(tmp_path, "root: /other\n"))).profile)
    assert os.environ["CARABID_ROOT"] == "/mine", "what a person has set counts"


def test_where_there_are_no_profiles_the_default_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an installed package, and in a snapshot of the code."""
    monkeypatch.setattr(cluster, "FOLDER", tmp_path / "nothing")
    assert load_cluster().profile == Profile() and load_cluster("slurm").layer.values == {}
    with pytest.raises(UserError, match="there is no cluster profile"):
        load_cluster("osc")


@pytest.mark.parametrize("name", known_profiles())
def test_every_profile_that_is_shipped_loads_and_says_what_it_is_for(name: str) -> None:
    load_experiment(LORA, [], load_cluster(name).layer)
    assert (cluster.FOLDER / f"{name}.yaml").read_text().startswith("# ")
