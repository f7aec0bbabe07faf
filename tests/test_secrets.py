"""Tokens and passwords reach the Hub and nothing else: no configuration, script, log, record or result holds one."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import hub as hub_module
from pipeline.config.trial import Config
from pipeline.disk import provenance
from pipeline.disk.secrets import HIDDEN, hide
from pipeline.errors import UserError
from pipeline.experiments.explain import field_names
from pipeline.experiments.reading import load_experiment
from tests.conftest import Assets, carabid
from tests.fake_hub import TOKEN, Hub, fake_hub

pytestmark = pytest.mark.jobs

FROZEN = "configs/beetles/frozen.yaml"
PASSWORD = "OpenSesame-of-the-proxy"
OPAQUE = "a-token-of-no-known-shape"


# ---------------------------------------------------------------- telling them from other text
@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"data.source={TOKEN}", f"data.source={HIDDEN}"),
        (f"Authorization: Bearer {TOKEN}", f"Authorization: Bearer {HIDDEN}"),
        (f"https://user:{PASSWORD}@host/x", f"https://{HIDDEN}@host/x"),
        (f"cannot reach http://u:{PASSWORD}@proxy:3128.", f"cannot reach http://{HIDDEN}@proxy:3128."),
        (f"https://{OPAQUE}@host/x", f"https://{HIDDEN}@host/x"),
        (f"+export HF_TOKEN={OPAQUE}\n+x", f"+export HF_TOKEN={HIDDEN}\n+x"),
        (f'DB_PASSWORD="{PASSWORD}" x', f"DB_PASSWORD={HIDDEN} x"),
        (f"WANDB_API_KEY={OPAQUE}", f"WANDB_API_KEY={HIDDEN}"),
    ],
)
def test_a_secret_is_hidden_and_what_stands_around_it_stays(text: str, hidden: str) -> None:
    assert hide(text) == hidden and hide(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        'export HF_TOKEN="$(cat ~/.token)"',
        "export HF_TOKEN=$MY_TOKEN",
        "MAX_TOKENS = 77",
        "backbone.name=hf-hub:imageomics/bioclip-2",
        "data.source=/scratch/hf_beetles",
        "https://huggingface.co/datasets/imageomics/sentinel-beetles",
        "optim.lr=1e-4,3e-4",
        "someone@example.org",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert hide(text) == text


@given(before=st.text(), after=st.text())
def test_the_token_of_the_environment_is_found_whatever_it_looks_like_and_wherever_it_stands(before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", OPAQUE)
        assert OPAQUE not in hide(before + OPAQUE + after)


# ---------------------------------------------------------------- configurations
def test_no_key_of_a_configuration_takes_a_token() -> None:
    names = list(field_names(Config))
    assert "data.source" in names
    assert not [name for name in names if any(word in name.lower() for word in ("token", "password", "secret", "key"))]


@pytest.mark.parametrize(
    "override",
    [
        "token={}",
        "data.token={}",
        "data.source={}",
        "data.source=https://user:{}@host/beetles.parquet",
        "backbone.name=hf-hub:a/b,{}",
        "{}",
        "{}=1",
    ],
)
def test_an_override_with_a_token_is_refused_and_not_repeated(override: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"on the command line: .*HF_TOKEN in the environment") as caught:
        load_experiment(FROZEN, (override.format(TOKEN),))
    assert TOKEN not in str(caught.value)


def test_a_key_for_a_token_is_refused_without_its_value(root: Path) -> None:
    for key in ("token", "data.token", "backbone.token"):
        with pytest.raises(UserError, match=f"`{key}` does not exist") as caught:
            load_experiment(FROZEN, (f"{key}={OPAQUE}",))
        assert OPAQUE not in str(caught.value)


@pytest.mark.parametrize("line", ["# my token: {}", "data: {{source: 'https://u:{}@host/x.csv'}}", "token: {}"])
def test_a_yaml_with_a_token_is_refused_with_its_line_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"task: beetles\n{line.format(TOKEN)}\n")
    with pytest.raises(UserError, match=r"mine\.yaml, line 2: .*must not stand in a configuration") as caught:
        load_experiment(path)
    assert TOKEN not in str(caught.value)


# ---------------------------------------------------------------- what is written
@pytest.fixture(scope="module")
def hub(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(assets.data / "data", root / "datasets" / "owner" / "private-beetles" / "data")
    shutil.copytree(assets.clip, root / "models" / "owner" / "private-clip")
    with fake_hub(root) as running:
        yield running


def holding(secret: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_run_with_a_token_and_a_proxys_password_writes_neither(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private data and weights, so that the token is used; the same command line as a Slurm job of one's own as well."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@127.0.0.1:9")
    config = (FROZEN, "data.source=owner/private-beetles", "backbone.name=hf-hub:owner/private-clip", "device=cpu")
    runs = [carabid(*command, *config, "train.epochs=2", root=root) for command in (("fetch",), ("submit", "--dry-run"))]
    runs.append(carabid("submit", *config, "train.epochs=2", "--cluster", "local", root=root))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    runs.append(carabid("train", *config, "train.epochs=3", root=root))
    assert list(root.glob("trained/*/*/results.json")) and list(root.glob("trained/*/submissions/job-17.json"))
    for secret in (TOKEN, PASSWORD):
        assert holding(secret, root) == []
        assert not [run.args for run in runs if secret in run.stdout + run.stderr]


def test_what_failed_tells_neither_the_token_nor_the_proxys_password(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@127.0.0.1:9")
    done = carabid("submit", FROZEN, "device=cpu", "--cluster", "local", root=root, check=False)
    assert done.returncode == 1 and list(root.glob("trained/*/*/failure.json"))
    assert holding(TOKEN, root) == holding(PASSWORD, root) == []
    assert TOKEN not in done.stdout + done.stderr and PASSWORD not in done.stdout + done.stderr


def test_the_cause_that_an_error_repeats_is_told_without_a_password() -> None:
    cause = RuntimeError(f"407 from\n http://user:{PASSWORD}@proxy:3128")
    assert hub_module.in_short(cause) == f"407 from http://{HIDDEN}@proxy:3128."


def test_provenance_keeps_the_edit_of_a_job_script_and_not_the_token_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "jobs" / "setup.sh"
    script.parent.mkdir()
    script.write_text("module load python\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    script.write_text(f"module load cuda\nexport HF_TOKEN={OPAQUE}\nexport https_proxy=http://u:{PASSWORD}@proxy\n")
    monkeypatch.setattr(provenance, "PROJECT", tmp_path)
    monkeypatch.setattr(provenance, "loaded_code", provenance.code_version)  # (which is remembered of an earlier test)
    monkeypatch.setattr("sys.argv", ["carabid", "predict", TOKEN])
    monkeypatch.setenv("SECRET_OF_THE_SITE", OPAQUE)
    text = json.dumps(provenance.provenance())
    assert "+module load cuda" in text and f"+export HF_TOKEN={HIDDEN}" in text
    assert not [secret for secret in (TOKEN, OPAQUE, PASSWORD) if secret in text]
