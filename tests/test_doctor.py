"""The preflight: what it reads from Slurm, what it estimates, and that each thing that would fail is named with what to do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.amounts import format_bytes
from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone, Tail
from pipeline.backbones.one_token import token_at
from pipeline.config.measures import KEPT
from pipeline.config.resources import Job
from pipeline.config.trial import Config
from pipeline.disk.writing import read_json, write_json
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import load_experiment
from pipeline.features.forward import compute_features
from pipeline.features.hashes import WeightsRecord, known_weights, weights_record
from pipeline.launch.doctor import capacity as room
from pipeline.launch.doctor import doctor, probe
from pipeline.launch.doctor.findings import Context, Finding
from pipeline.launch.scheduler import site
from pipeline.launch.watching import estimates
from pipeline.models.base import Facts
from pipeline.models.metadata import Names
from pipeline.models.pooling import HIDDEN
from pipeline.models.saved import make_model
from pipeline.training.samples import PREDICTION_BATCH
from tests.cluster.cluster import MAX_ARRAY_SIZE
from tests.conftest import Assets, carabid
from tests.small import named
from tests.test_launch import fake_command

pytestmark = pytest.mark.jobs

GB = 10**9
NO_GPU = tuple(f"resources.{stage}.gpus_per_node=0" for stage in ("extract", "train", "evaluate"))


def by_name(lines: Iterator[Finding]) -> dict[str, Finding]:
    found = list(lines)
    assert len({line.what for line in found}) == len(found)
    return {line.what: line for line in found}


# ---------------------------------------------------------------- what sinfo says
SINFO = """
gpu*|up|2-00:00:00|512000|64|10|mix|gpu:a100:4(S:0-1),shard:a100:16
gpu*|up|2-00:00:00|256000+|48|4|drain|gpu:v100:2,gpu:V100:2
cpu|up|infinite|128000|32|20|idle~|(null)
old|down|1:00:00|64000|16|2|idle|gpu:2
far|up|30:00|64000|16|2|down*|gpu:2080ti:1(IDX:0)
"""


ONE_EACH = "launch.task_minutes=0.01"
"""A job task for each trial."""


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[site.Nodes]:
    calls = fake_command(tmp_path / "bin", "sinfo", f"cat <<'EOF'{SINFO}EOF", monkeypatch)
    found = site.partitions()
    assert "--exact" in calls.read_text()
    return found


def test_partitions_are_read_with_their_limits_states_and_gpus(nodes: list[site.Nodes]) -> None:
    assert nodes[0] == site.Nodes("gpu", True, True, 172800, 512000, 64, 10, True, {"a100": 4})
    assert nodes[1] == site.Nodes("gpu", True, True, 172800, 256000, 48, 4, False, {"v100": 4})
    assert nodes[2] == site.Nodes("cpu", False, True, None, 128000, 32, 20, True, {})
    assert [(n.up, n.usable, n.gpus) for n in nodes[3:]] == [(False, True, {"": 2}), (True, False, {"2080ti": 1})]


@pytest.mark.parametrize(
    ("asked", "key", "why"),
    [
        ({}, None, ""),
        ({"partition": "gpu", "gpu_type": "A100", "gpus_per_node": 4, "mem": "500G"}, None, ""),
        ({"partition": "cpu,gpu", "time": "30-00:00:00"}, None, ""),  # cpu has no limit
        ({"partition": "cpu", "gpus_per_node": 0}, None, ""),
        ({"partition": "gpus"}, "partition", "there is no partition gpus; there are: gpu, cpu, old, far"),
        ({"partition": "old"}, "partition", "old takes no jobs now"),
        ({"time": "3-00:00:00"}, "time", "gpu allows at most 2-00:00:00"),
        ({"partition": "cpu"}, "gpus_per_node", "no GPU"),
        ({"gpu_type": "h100"}, "gpu_type", r"a100 \(4 a node\), v100 \(4 a node\)"),
        ({"gpu_type": "a100", "gpus_per_node": 5}, "gpus_per_node", r"a100 \(4 a node\)"),
        ({"mem": "600G"}, "mem", "largest node of gpu has 500G"),
        ({"cpus_per_task": 65}, "cpus_per_task", "has 64"),
        ({"mem_per_cpu": "16G", "cpus_per_task": 31}, None, ""),
        ({"mem_per_cpu": "16G", "cpus_per_task": 33}, "mem_per_cpu", "largest node of gpu has 500G"),
        ({"mem_per_gpu": "200G", "gpus_per_node": 3}, "mem_per_gpu", "largest node of gpu has 500G"),
        ({"mem": None}, None, ""),
    ],
)
def test_what_no_node_can_meet_is_named_by_its_key(
    nodes: list[site.Nodes], asked: dict[str, Any], key: str | None, why: str
) -> None:

    found = site.misfit(Job(**asked), nodes)
    assert (found and found[0]) == key
    assert found is None or re.search(why, found[1])


def test_where_no_partition_is_the_default_one_has_to_be_named(nodes: list[site.Nodes]) -> None:
    others = [n for n in nodes if not n.default]
    assert site.misfit(Job(gpus_per_node=0), others) == (
        "partition",
        "no partition is the default: name one; there are: cpu, old, far",
    )


def test_the_partition_that_the_shell_names_is_the_one_looked_at(
    nodes: list[site.Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("SBATCH_PARTITION", "cpu")
    assert [n.partition for n in site.nodes_for(Job(), nodes)] == ["cpu"]
    assert [n.partition for n in site.nodes_for(Job(partition="far"), nodes)] == ["far"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert {n.partition for n in site.nodes_for(Job(), nodes)} == {"gpu"}, "in a job it is what that job was given"


# ---------------------------------------------------------------- what sbatch says
@pytest.mark.parametrize(
    ("message", "key"),
    [
        ("allocation failure: Invalid account or account/partition combination specified", "account (birds)"),
        ("allocation failure: Invalid partition name specified", "partition (gpu)"),
        ("allocation failure: Invalid qos specification", "qos (not set)"),
        ("allocation failure: Invalid feature specification", "constraint (not set)"),
        ("allocation failure: Requested time limit is invalid (missing or exceeds some limit)", "time (04:00:00)"),
        ("allocation failure: Invalid generic resource (gres) specification", "gpu_type (not set), gpus_per_node (1)"),
        ("Memory specification can not be satisfied", "mem (32G)"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "qos (not set), acc"),
        ("allocation failure: Requested node configuration is not available", "partition (gpu), constraint (not set)"),
        ("allocation failure: Requested reservation is invalid", "reservation (not set)"),
        ("allocation failure: Invalid license specification", "licenses (not set)"),
        ("allocation failure: Invalid node name specified", "nodelist (not set), exclude (not set)"),
        ("sbatch: error: Invalid --mail-type specification", "mail_type (not set)"),
        ("sbatch: unrecognized option '--swithces=1'", "sbatch ({'swithces': '1'})"),
    ],
)
def test_a_refusal_names_the_keys_that_it_is_about(message: str, key: str) -> None:
    said = doctor.advice(message, "train", Job(partition="gpu", account="birds", sbatch={"swithces": "1"}))
    assert said.startswith("Check resources.train in the YAML or the cluster profile: ") and f": {key}" in said


# ---------------------------------------------------------------- a node
@pytest.mark.parametrize(
    ("theirs", "verdict", "words"),
    [(100, "ok", "within 9 s"), (108, "ok", ""), (96, "ok", ""), (130, "warn", "26 s ahead"), (40, "warn", "60 s behind")],
)
def test_a_clock_outside_the_time_in_which_the_node_looked_is_worth_a_word(theirs: float, verdict: str, words: str) -> None:
    line = doctor.clock_line(theirs, earliest=100, latest=104)
    assert line.verdict == verdict and words in line.text


SEEN = probe.Seen("n1", "3.12", {"torch": "2"}, "x86_64", "", None, 8 * GB, "", [], "", "", 0, "/tmp", GB, 0.0)


@pytest.mark.parametrize(
    ("seen", "asked", "verdict", "words"),
    [
        (SEEN, 0, "ok", "no GPU"),
        (SEEN, 1, "warn", "gpus_per_node=0"),
        (replace(SEEN, device="A100", gpu_memory=80 * GB), 1, "ok", "A100, 80.0 GB"),
        (replace(SEEN, device="", device_error="this job was given a GPU, but"), 1, "FAIL", "was given a GPU"),
    ],
)
def test_a_gpu_that_cannot_be_used_or_would_stand_idle_is_told(seen: probe.Seen, asked: int, verdict: str, words: str) -> None:
    line = doctor.device_line(seen, asked)
    assert line.verdict == verdict and words in line.text


def test_a_folder_for_copies_that_the_node_does_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each training would fail there, after it has waited in the queue."""
    monkeypatch.setenv("OWN_DISK", str(tmp_path / "disk"))

    def look(stage: str) -> Finding:
        request = tmp_path / "request.json"
        config = load_experiment("configs/beetles/pixels.yaml", [f"paths.stage={stage}"]).config
        write_json(request, config.model_dump(mode="json"))
        probe.main(request)
        return doctor.stage_line(probe.Seen(**read_json(tmp_path / "seen.json")))

    assert str(look("$OWN_DISK/features")).startswith("ok") and (tmp_path / "disk" / "features").is_dir()
    told = look("$NOT_SET_THERE")
    assert told.verdict == "FAIL" and "NOT_SET_THERE is not set" in told.text
    (tmp_path / "disk" / "file").touch()
    assert look("$OWN_DISK/file").verdict == "FAIL"


def test_a_folder_that_cannot_be_written_to_is_told_and_nothing_stays_in_one_that_can(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert probe.try_folder(tmp_path / "file") == "File exists"
    assert probe.try_folder(tmp_path / "new" / "folder") == "" and not list((tmp_path / "new" / "folder").iterdir())


# ---------------------------------------------------------------- estimates
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("a100", (40, 80)), ("A100_80GB", (80, 80)), ("a100-sxm4-40gb", (40, 40)), ("a100_3g.20gb", (20, 20)),
        ("a10", (24, 24)), ("l40s", (48, 48)), ("tesla_v100", (16, 32)), ("v100-32g", (32, 32)), ("h100", (80, 94)),
        ("nvidia_rtx_a6000", (48, 48)), ("geforce_rtx_2080_ti", (11, 11)), ("gh200", (96, 144)), ("gpu", None), ("", None),
    ],
)  # fmt: skip
def test_a_gpus_memory_is_known_by_its_type(name: str, sizes: tuple[int, int] | None) -> None:
    assert estimates.gpu_memory(name) == (sizes and (sizes[0] * GB, sizes[1] * GB))


ENCODERS = {
    "frozen": {"kind": "frozen"},
    "tail": {"kind": "finetuned", "blocks": 2},
    "lora": {"kind": "lora", "blocks": 2, "r": 16, "dora": False},
    "dora": {"kind": "lora", "blocks": 2, "r": 16, "dora": True},
    "convs": {"kind": "patch_convs", "kernel": 3, "channels": 32},
}


@pytest.fixture(scope="module")
def backbone(clip: Path) -> Backbone:
    return load_backbone(Config.model_validate(named(values("frozen", clip))).backbone)


def values(encoder: str, clip: Path, **sections: Any) -> dict[str, Any]:
    return {
        "experiment": "estimates",
        "backbone": {"kind": "open_clip", "name": f"local-dir:{clip}"},
        "model": {"encoder": ENCODERS[encoder], "domain_embedding": True},
        **sections,
    }


@pytest.fixture
def case(backbone: Backbone, clip: Path, root: Path) -> Callable[..., tuple[Config, WeightsRecord]]:
    def make(encoder: str, **sections: Any) -> tuple[Config, WeightsRecord]:
        config = Config.model_validate(named(values(encoder, clip, **sections)))
        return config, weights_record(config, lambda: backbone)

    return make


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("encoder", "kind"), [("frozen", "pooled"), ("tail", "cut"), ("convs", "patches")])
def test_the_size_of_features_is_known_to_the_byte(case: Any, backbone: Backbone, encoder: str, kind: Any, dtype: Any) -> None:
    config, weights = case(encoder, features={"dtype": dtype})
    images = torch.zeros(3, 3, backbone.image_size, backbone.image_size)
    made = compute_features(backbone, images, kind, 1, dtype)
    assert estimates.features_bytes(config, weights, 3) == made.numel() * made.element_size()


SETS = {
    "model": {"species_embedding": True, "domain_embedding": False, "pool": "attention"},
    "data": {"columns": {"species": "name"}},
    "train": {"sample": "groups", "max_images": 8, "precision": "fp32"},
}


@pytest.mark.parametrize("sets", [False, True], ids=["images", "sets"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_number_of_trained_parameters_is_estimated_within_a_tenth(
    case: Any, backbone: Backbone, encoder: str, sets: bool
) -> None:
    more = SETS | {"model": SETS["model"] | {"encoder": ENCODERS[encoder]}} if sets else {}
    config, weights = case(encoder, **more)
    cut = backbone.n_blocks - 2 if encoder in ("tail", "lora", "dora") else None
    model = make_model(config, Facts(config.data.targets, Names(("a",)), backbone.embed_dim, "", cut, ""), backbone)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimates.trained_parameters(config, weights) == pytest.approx(counted, rel=0.1)


def kept_for_backward(model: torch.nn.Module, tokens: torch.Tensor, bf16: bool) -> int:
    """Bytes of all tensors that the backward pass will read, the model's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", enabled=bf16):
        out = model(tokens)
    del out
    return sum(kept.values())


@pytest.mark.parametrize("bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize("method", ["tail", "lora", "dora"])
def test_what_a_block_keeps_for_the_backward_pass_is_as_measured(
    case: Any, backbone: Backbone, method: str, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the pooling reads all tokens: of one token alone the last block keeps next to nothing."""

    def all_tokens(tail: Tail, tokens: torch.Tensor, at: torch.Tensor, *more: Any) -> torch.Tensor:
        return token_at(tail.through_blocks(tokens, *more), at).squeeze(1)

    monkeypatch.setattr(Tail, "token_after_blocks", all_tokens)
    config, weights = case(method)
    tail = config.model.encoder.build(backbone)
    few, many = (torch.randn(n, weights.n_patches + 1, weights.width) for n in (64, 128))
    image = (kept_for_backward(tail, many, bf16) - kept_for_backward(tail, few, bf16)) / 64
    measured = image / (2 * (weights.n_patches + 1) * weights.width)
    assert KEPT[method][0 if bf16 else 1] == pytest.approx(measured, rel=0.25)


def test_what_is_written_here_twice_is_the_same() -> None:
    assert estimates.PREDICTION_BATCH == PREDICTION_BATCH and estimates.ATTENTION == HIDDEN


def test_features_count_as_resident_only_where_they_would_lie_on_the_gpu(case: Any) -> None:
    def needed(residence: str, memory: int | None) -> int:
        config, weights = case("tail", resources={"residence": residence})
        return estimates.training_bytes(config, weights, 10**6, memory)

    config, weights = case("tail")
    features = estimates.features_bytes(config, weights, 10**6)
    without = needed("mmap", None)
    assert needed("device", None) == without + features
    assert needed("auto", 2 * features) == without + features
    assert needed("auto", features) == needed("auto", None) == needed("host", 10 * features) == without


def test_more_images_a_batch_and_more_blocks_need_more_memory(case: Any) -> None:
    small, weights = case("tail", train={"batch_size": 64, "precision": "fp32"})
    large, _ = case("tail", train={"batch_size": 4096, "precision": "fp32"})
    assert estimates.training_bytes(large, weights, 1) > estimates.training_bytes(small, weights, 1)


@pytest.mark.parametrize(
    "views", [{"crops": ["left", "right"], "tiles": [2, 2]}, {"crops": ["left", "whole"], "masks": [[0, 0, 0.1, 0.1]]}]
)
def test_the_size_of_the_features_of_views_is_known_to_the_byte(clip: Path, root: Path, views: dict[str, Any]) -> None:
    of = {"kind": "open_clip", "name": f"local-dir:{clip}", "views": views}
    config = Config.model_validate(named(values("frozen", clip, backbone=of)))
    viewed = load_backbone(config.backbone)
    images = torch.stack([viewed.transform(Image.new("RGB", (90, 60)))] * 3)
    made = compute_features(viewed, images, "pooled", 1, "bf16")
    assert estimates.features_bytes(config, weights_record(config, lambda: viewed), 3) == made.numel() * made.element_size()


def test_gradient_checkpointing_keeps_one_block_and_what_the_others_read(case: Any) -> None:
    again = {"gradient_checkpointing": True}
    plain, weights = case("tail", train={"batch_size": 4096})
    less, _ = case("tail", train={"batch_size": 4096}, resources=again)
    assert estimates.training_bytes(less, weights, 1) < estimates.training_bytes(plain, weights, 1)
    encoder = plain.model.encoder
    assert encoder.kept_bytes(weights, 100, True) - encoder.kept_bytes(weights, 100, True, again=True) == 100 * (64 - 4)


def test_a_batch_of_groups_is_as_large_as_that_of_all_their_images(case: Any) -> None:
    groups, weights = case("tail", train=SETS["train"] | {"batch_size": 512})
    images, _ = case("tail", train={"batch_size": 4096, "precision": "fp32"})
    assert estimates.training_bytes(groups, weights, 1) == estimates.training_bytes(images, weights, 1)


# ---------------------------------------------------------------- quotas
@pytest.mark.parametrize(
    ("quota", "lfs", "left"),
    [
        ("", "", None),
        ("{folder} 600 1000 1200 0 5 0 0 0", "", 400),
        ("{folder} 1300* 1000 1200 1700 5 0 0 0", "", 0),
        ("/elsewhere 999 1000 1000 0 5 0 0 0\n{folder} 600 0 0 0 5 0 0 0", "", None),
        ("/ 100 0 900 0 5 0 0 0", "{folder}\n   307200*  0 307300 - 10 0 0 -", 100),
    ],
)
def test_a_quota_leaves_what_is_not_used_of_the_lower_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, lfs: str, left: int | None
) -> None:
    for name, said in (("quota", quota), ("lfs", lfs)):
        text = said.format(folder=tmp_path)
        fake_command(tmp_path / "bin", name, f"cat <<'EOF'\nDisk quotas for user me (uid 7):\n{text}\nEOF\nexit 1", monkeypatch)
    found = room.quota_left(tmp_path / "a")
    assert found == (None if left is None else left << 10)


# ---------------------------------------------------------------- all checks, without a Slurm
@pytest.fixture
def context(assets: Assets, root: Path) -> Callable[..., Context]:
    def make(*overrides: str, scheduler: Any = "slurm", **options: Any) -> Context:
        given = {text.partition("=")[0] for text in overrides}
        usual = [text for text in assets.overrides("frozen") if text.partition("=")[0] not in given]
        experiment = load_experiment("configs/beetles/frozen.yaml", [*usual, *overrides])
        return Context(experiment, Profile(scheduler=scheduler), **options)

    return make


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Commands of a Slurm that has nothing against anything; a test gives other words to some. Returns their folder."""

    def make(**scripts: str) -> Path:
        usual = {
            "sinfo": "echo 'main*|up|infinite|256000|16|2|idle|gpu:a100:2'",
            "sbatch": 'case "$*" in *test-only*) ;; *) echo 77 ;; esac',
            "squeue": "", "scontrol": "echo 'MaxArraySize = 11'", "sacct": "exit 1", "scancel": "",
            "sacctmgr": "echo 'accounting is disabled' >&2; exit 1",
        }  # fmt: skip
        for name, script in {**usual, **scripts}.items():
            fake_command(tmp_path / "bin", name, script, monkeypatch)
        return tmp_path / "bin"

    return make


def test_a_check_that_fails_keeps_no_other_from_being_made(context: Any, slurm: Any) -> None:
    slurm(sinfo="echo 'Unable to contact slurm controller' >&2; exit 1", sbatch="echo 'Invalid qos specification' >&2; exit 1")
    lines = by_name(doctor.run(context(look=False)))
    assert lines["partitions"].verdict == "FAIL" and "Unable to contact" in lines["partitions"].text
    refused = lines["script of train"]
    assert refused.verdict == "FAIL" and "Invalid qos" in refused.text and "qos (not set)" in refused.text
    assert lines["features/"].verdict == lines["trained/"].verdict == "ok"
    assert lines["node"].verdict == "skip" and "--no-probe" in lines["node"].text


def test_each_stages_real_script_is_tried_without_its_dependency(context: Any, slurm: Any, tmp_path: Path) -> None:
    slurm(sbatch=f"cat >> {tmp_path}/scripts")
    lines = by_name(doctor.run(context("seed=0,1,2", "resources.train.mem=7G", ONE_EACH, look=False)))
    tried = (tmp_path / "scripts").read_text()
    assert [lines[f"script of {stage}"].verdict for stage in ("extract", "train", "evaluate", "collect")] == ["ok"] * 4
    assert tried.count("#!/bin/bash") == 4 and "#SBATCH --mem=7G" in tried and "#SBATCH --array=0-2%3" in tried
    assert "--dependency" not in tried


def test_a_submission_says_its_arrays_and_warns_of_more_jobs_than_one_may_have(context: Any, slurm: Any) -> None:
    seeds = "seed=" + ",".join(map(str, range(12)))
    slurm()
    lines = by_name(doctor.run(context(seeds, ONE_EACH, look=False)))
    assert "extract 1, train 2, evaluate 2, collect 1; 26 jobs in all" in lines["arrays"].text and "jobs" not in lines
    for said, warned in (("25", True), ("26", False), ("", False)):
        slurm(sacctmgr=f"echo '{said}'")
        assert ("jobs" in by_name(doctor.run(context(seeds, ONE_EACH, look=False)))) == warned


def test_where_there_is_no_slurm_its_checks_are_left_out_and_the_others_made(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines = by_name(doctor.run(context()))
    for what in ("partitions", "scripts", "limits", "node"):
        assert lines[what].verdict == "skip" and "login node" in lines[what].text
    assert lines["features/"].verdict == "ok"


def test_a_full_queue_says_nothing_of_the_node_and_the_job_is_cancelled(context: Any, slurm: Any, root: Path) -> None:
    folder = slurm(squeue="echo 'carabid-x|77|N/A|PENDING|Resources'")
    lines = by_name(doctor.run(context(patience=0)))
    assert lines["node"].verdict == "skip" and "waited for more than 0 s (Resources)" in lines["node"].text
    assert "77" in (folder / "scancel.calls").read_text()
    assert not list((root / "trained").iterdir())


def test_a_job_of_which_nothing_is_seen_tells_to_share_the_folder(
    context: Any, slurm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "POLL_SECONDS", 0.01)
    slurm()
    line = by_name(doctor.run(context()))["node"]
    assert line.verdict == "FAIL" and "nothing of it is seen" in line.text and "CARABID_ROOT" in line.text


def test_features_without_room_and_a_gpu_too_small_are_told(context: Any, slurm: Any, tmp_path: Path) -> None:
    slurm(quota=f"echo '{tmp_path} 999 1000 1000 0 1 0 0 0'", sinfo="echo 'main*|up|infinite|256000|16|2|idle|gpu:t4:2'")
    given = context("resources.extract_batch=40000000", "seed=0,1,2", look=False)
    carabid_fetch(given)
    lines = by_name(doctor.run(given))
    disk, memory = lines["disk for features/"], lines["memory of extract"]
    assert disk.verdict == "FAIL" and "left of your quota" in disk.text and "paths.features" in disk.text
    assert memory.verdict == "FAIL" and "t4 has 16.0 GB" in memory.text and "resources.extract_batch" in memory.text
    assert lines["memory of train"].verdict == "ok"
    config = given.experiment.config
    weights = known_weights(config)
    assert weights is not None
    written = (3 * 4 + 16) * estimates.trained_parameters(config, weights)  # three models and a checkpoint
    assert f"about {format_bytes(written)} to be written" in lines["disk for trained/"].text


def carabid_fetch(context: Context) -> None:
    from pipeline.stages import fetch

    fetch.run([context.experiment.config])


@pytest.mark.parametrize(
    ("override", "what", "words"),
    [
        ("backbone.name=hf-hub:nobody/nothing", "weights hf-hub:nobody/nothing", "carabid fetch"),
        ("data.source=nobody/nothing", "data nobody/nothing", "carabid fetch"),
        ("data.source=/not/there.csv", "cache", "no such file"),
    ],
)
def test_what_is_not_in_the_cache_is_named_with_the_command_that_brings_it(
    context: Any, slurm: Any, override: str, what: str, words: str
) -> None:
    slurm()
    lines = by_name(doctor.run(context(override, look=False)))
    assert lines[what].verdict == "FAIL" and words in lines[what].text
    assert lines["disk"].verdict == lines["memory"].verdict == "skip"


def test_a_machine_on_which_all_is_well_is_looked_at_without_a_slurm(assets: Assets, root: Path) -> None:
    arguments = ("configs/beetles/frozen.yaml", *assets.overrides("frozen"))
    carabid("fetch", *arguments, root=root)
    done = carabid("doctor", *arguments, "--cluster", "local", root=root)
    verdicts = [line.split()[0] for line in done.stdout.splitlines()]
    assert verdicts == ["skip"] * 3 + ["ok"] * 12, done.stdout
    assert "this machine has" in done.stdout


# ---------------------------------------------------------------- on a real Slurm
@pytest.mark.slurm
def test_a_cluster_on_which_all_is_well_gets_only_good_words_and_keeps_nothing(assets: Assets, environ: Path) -> None:
    """Names with blanks and quotes in the root are no obstacle."""
    root = environ / "it's a root"
    arguments = ("configs/beetles/baseline.yaml", *assets.overrides("baseline"), *NO_GPU)
    carabid("fetch", *arguments, root=root)
    done = carabid("doctor", *arguments, root=root)
    lines = done.stdout.splitlines()
    assert len(lines) == 22 and all(line.startswith("ok    ") for line in lines), done.stdout
    assert "MaxArraySize" not in done.stdout and f"of at most {MAX_ARRAY_SIZE} job tasks" in done.stdout
    assert not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert not list((root / "trained").iterdir())


@pytest.mark.slurm
def test_everything_that_would_fail_is_named_with_what_to_do(assets: Assets, environ: Path) -> None:
    """A wrong partition, an unknown type of GPU, a GPU that torch cannot use, no folder to write to, nothing fetched."""
    (environ / "features").touch()
    usual = [text for text in assets.overrides("frozen") if not text.startswith(("device", "data.source"))]
    wrong = ("data.source=nobody/nothing", "resources.evaluate.partition=nope", "resources.extract.gpu_type=a100")
    done = carabid("doctor", "configs/beetles/frozen.yaml", *usual, *wrong, root=environ, check=False)
    failed = dict(line[6:].split(": ", 1) for line in done.stdout.splitlines() if line.startswith("FAIL"))
    expected = {
        "partition of evaluate": "resources.evaluate.partition (it is nope)",
        "partition of extract": "resources.extract.gpu_type (it is a100)",
        "script of evaluate": "partition (nope)",
        "script of extract": "gpu_type (a100)",
        "features/": "Set paths.features",
        "data nobody/nothing": "Run `carabid fetch",
    }
    assert {what: failed.get(what) for what in expected} == {what: text for what, text in failed.items() if what in expected}
    assert all(text in failed[what] for what, text in expected.items()), done.stdout
    assert "Set paths.features" in done.stdout and "node: features/" in done.stdout
    if not torch.cuda.is_available():
        assert "FAIL  node: device: this job was given a GPU" in done.stdout
    assert done.returncode == 1 and done.stderr.startswith("carabid: not ready: ") and "Traceback" not in done.stderr


@pytest.mark.slurm
def test_an_option_that_slurm_does_not_know_is_named_before_anything_is_queued(assets: Assets, environ: Path) -> None:
    """By sbatch itself: what it knows is not written down here."""
    options = "{swithces: 1}", "{switches: two}", "{exclusive: true, comment-of-mine: a}"
    stages = ("extract", "train", "evaluate")
    wrong = [f"resources.{stage}.sbatch={option}" for stage, option in zip(stages, options, strict=True)]
    arguments = ("configs/beetles/frozen.yaml", *assets.overrides("frozen"), *NO_GPU, "resources.collect.reservation=none")
    done = carabid("doctor", *arguments, *wrong, "--no-probe", root=environ, check=False)
    failed = dict(line[6:].split(": ", 1) for line in done.stdout.splitlines() if line.startswith("FAIL  script"))
    assert "unrecognized option '--swithces=1'" in failed["script of extract"] and "sbatch (" in failed["script of extract"]
    assert "script of train" in failed and "--comment-of-mine" in failed["script of evaluate"], done.stdout
    assert (
        "Requested reservation is invalid" in failed["script of collect"] and "reservation (none)" in failed["script of collect"]
    )
    refused = carabid("submit", *arguments, *wrong[:1], root=environ, check=False)
    assert refused.returncode == 1 and "swithces" in refused.stderr and "Traceback" not in refused.stderr
    assert not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.mark.slurm
def test_a_setup_that_fails_on_the_node_is_told_by_the_end_of_its_log(assets: Assets, environ: Path) -> None:
    profile = environ / "mine.yaml"
    profile.write_text("scheduler: slurm\nmodules: [anaconda/none]\n")
    arguments = ("configs/beetles/frozen.yaml", *assets.overrides("frozen"), *NO_GPU, "--cluster", profile)
    done = carabid("doctor", *arguments, root=environ, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert "node: job" in line and "module" in line and "`modules`" in line and done.returncode == 1
