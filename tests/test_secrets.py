"""Tokens and passwords reach the Hub and nothing else: no configuration, script, log, record or result holds one."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import hub as hub_module
from pipeline.config.trial import Config
from pipeline.disk import provenance
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.secrets import HIDDEN, hidden, hide
from pipeline.disk.writing import write_json
from pipeline.errors import UserError
from pipeline.experiments.cluster import load_cluster
from pipeline.experiments.mistakes import field_names
from pipeline.experiments.reading import load_experiment
from pipeline.launch.jobs.trials import exit_on_error, recorded_failure
from tests.conftest import Assets, carabid
from tests.fake_hub import TOKEN, Hub, fake_hub

pytestmark = pytest.mark.jobs

FROZEN = "configs/beetles/frozen.yaml"
PASSWORD = "OpenSesame-of-the-proxy"
OPAQUE = "a-token-of-no-known-shape"
HEX40 = "0123456789abcdef0123456789abcdef01234567"
HEX64 = HEX40 + "89abcdef0123456789abcdef"


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
        (f"AccountKey={OPAQUE}==;EndpointSuffix=x", f"AccountKey={HIDDEN}"),
        (f"https://x/y?sv=1&sig={OPAQUE}%3D&se=2", f"https://x/y?sv=1&sig={HIDDEN}&se=2"),
        (f"https://u:{PASSWORD}/with@slash@proxy:3128/x", f"https://{HIDDEN}@proxy:3128/x"),
        (f"https_proxy=user:{PASSWORD}@proxy:3128", f"https_proxy=user:{HIDDEN}@proxy:3128"),
        (f"'Authorization': 'Basic {OPAQUE}'", f"'Authorization': 'Basic {HIDDEN}'"),
        (f"wandb login --relogin {HEX40} --host=x", f"wandb login --relogin {HIDDEN} --host=x"),
        (f"huggingface-cli login --token {OPAQUE} -v", f"huggingface-cli login --token {HIDDEN} -v"),
        (
            f"machine api.wandb.ai\n+  login user\n+  password {HEX40}\n",
            f"machine api.wandb.ai\n+  login user\n+  password {HIDDEN}\n",
        ),
        (f"DB_PASSWORD=${{DB_PASSWORD:-{PASSWORD}}}", f"DB_PASSWORD=${{DB_PASSWORD:-{HIDDEN}}}"),
        (f"PGPASSWORD='$ecret {PASSWORD}' psql", f"PGPASSWORD={HIDDEN} psql"),
        (f'os.environ["API_TOKEN"] = "{PASSWORD}"', f'os.environ["API_TOKEN"] = {HIDDEN}'),
        (f'{{"db": {{"password": "{PASSWORD}"}}}}', f'{{"db": {{"password": {HIDDEN}}}}}'),
        (f'setenv("GBIF_PWD", "{PASSWORD}")', f'setenv("GBIF_PWD", {HIDDEN})'),
        (f"setenv X_SECRET_KEY {PASSWORD}", f"setenv X_SECRET_KEY {HIDDEN}"),
        ("password: hunter2", f"password: {HIDDEN}"),
        ("DB_PASSWD = correcthorse", f"DB_PASSWD = {HIDDEN}"),
        (f"curl -u me:{PASSWORD} https://x", f"curl -u {HIDDEN} https://x"),
        (f"echo {OPAQUE} | docker login x --password-stdin", f"echo {HIDDEN} | docker login x --password-stdin"),
        (f"sshpass -p {PASSWORD} ssh node", f"sshpass -p {HIDDEN} ssh node"),
        (f"curl --user me:{PASSWORD} https://x", f"curl --user {HIDDEN} https://x"),
        (f"curl --proxy-user=me:{PASSWORD} -O x", f"curl --proxy-user={HIDDEN} -O x"),
        (f"curl -sSu me:{PASSWORD} https://x", f"curl -sSu {HIDDEN} https://x"),
        (f"curl -U me:{PASSWORD} https://x", f"curl -U {HIDDEN} https://x"),
        (f"lftp -u me,{PASSWORD} ftp://x", f"lftp -u me,{HIDDEN} ftp://x"),
        (f"sftp me:{PASSWORD}@host:/x", f"sftp me:{HIDDEN}@host:/x"),
        (f"openssl rsa -passin pass:{PASSWORD} -in x", f"openssl rsa -passin pass:{HIDDEN} -in x"),
        (f"ssh-keygen -t rsa -N {PASSWORD} -f x", f"ssh-keygen -t rsa -N {HIDDEN} -f x"),
        (f"unzip -P {PASSWORD} x.zip", f"unzip -P {HIDDEN} x.zip"),
        (f"7z x -p{PASSWORD} a.7z", f"7z x -p{HIDDEN} a.7z"),
        (f"aws configure set aws_secret_access_key {PASSWORD}", f"aws configure set aws_secret_access_key {HIDDEN}"),
        (f"git config --global user.password {PASSWORD}", f"git config --global user.password {HIDDEN}"),
        (
            f"dvc remote modify --local me secret_access_key {PASSWORD}",
            f"dvc remote modify --local me secret_access_key {HIDDEN}",
        ),
        (f'{{"username":"me","key":"{HEX40[:32]}"}}', f'{{"username":"me","key":"{HIDDEN}"}}'),
        (
            f"url: https://cds.climate.copernicus.eu/api\nkey: {OPAQUE}",
            f"url: https://cds.climate.copernicus.eu/api\nkey: {HIDDEN}",
        ),
        (f"key: 12345:{HEX40[:36]}", f"key: {HIDDEN}"),
        (f"gbif.login('me', '{PASSWORD}')", f"gbif.login('me', {HIDDEN})"),
        ("occ_download(user='me', pwd='correcthorse')", f"occ_download(user='me', pwd={HIDDEN})"),
        ('pwd <- "correcthorse"', f"pwd <- {HIDDEN}"),
        ("export PASS=correcthorse", f"export PASS={HIDDEN}"),
        ("mount -o username=me,pass=hunter22 x", f"mount -o username=me,pass={HIDDEN} x"),
        (f"export REDIS_AUTH={OPAQUE}1", f"export REDIS_AUTH={HIDDEN}"),
        (f'"NPM_AUTH": "{OPAQUE}1"', f'"NPM_AUTH": {HIDDEN}'),
        ("user: me\npass: Xk9vQ2mLp7RtZw4s\n", f"user: me\npass: {HIDDEN}\n"),
        ("//registry/:_auth=bWU6Y29ycmVjdGhvcnNl", f"//registry/:_auth={HIDDEN}"),
        (f"https://x/y?auth={OPAQUE}&t=1", f"https://x/y?auth={HIDDEN}&t=1"),
        (f"Cookie: session={OPAQUE}; other=1", f"Cookie: {HIDDEN}"),
        (f"https://x.webhook.office.com/webhookb2/{HEX40}", f"https://x.webhook.office.com/webhookb2/{HIDDEN}"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n+b3Bl\n+AAAA\n-----END OPENSSH PRIVATE KEY-----\nx", f"{HIDDEN}\nx"),
        ("-----BEGIN RSA PRIVATE KEY-----\nb3Bl", HIDDEN),
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
        f"{'commit'}: {HEX40}",
        f'"sha256": "{HEX64}", "config_hash": "{HEX64}", "features": "{HEX40[:16]}"',
        f"data.revision={HEX40}",
        f"features/{HEX40[:32]}/shard-00000-of-00008.safetensors",
        f"trained/beetles-lora/lr=1e-3,seed=0-{HEX40[:8]}/adapter/adapter_model.safetensors",
        "backbone.name=local-dir:/scratch/models/bioclip-2",
        "/scratch/me/sk-learn-models-for-the-beetles-2024/task-based-embeddings-of-everything",
        "a token or password must not stand in a configuration: remove it",
        "password: ask the lab's manager",
        "token = tokens[0]; token_type_ids = None; class_token = self.cls_token(images)",
        "backbone.token_pooling=mean model.n_tokens=196 tokenizer=open_clip",
        "GOOGLE_APPLICATION_CREDENTIALS=/scratch/me/key.json",
        "HF_TOKEN_PATH=/scratch/me/.cache/huggingface/token",
        '("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")',
        "PWD=/scratch/me OLDPWD=/scratch/me KEYBOARD=de",
        "git@github.com:owner/carabid.git ssh://github.com:22/owner",
        "doi:10.1101/2024.01.01@v2 08:15:30 http://localhost:8888/lab?tab=1",
        "docker run -p 8080:80 image; sbatch -p gpu jobs/train.sh",
        "wandb login; huggingface-cli login; carabid predict --token-file x",
        "QR code: 5 keys, key=value, key-frame, sort_key=lambda x: x.key",
        f"key: {HEX40[:32]}\nfeature_key: {HEX40[:16]}\nkey: bill_length_mm\nkeys: [a, b]",
        "primary_key=occurrence_id group_key: eventID_2024 datasetKey=0123abcd-4567-89ef-0123-456789abcdef",
        "compass=north-west-12 COMPASS=north-west-12 bypass: cache-2024 BYPASS=cache-2024 LOWPASS=12000.5 BANDPASS=500.25",
        "pass_rate: 0.98765432 PASS_RATE=0.98765432 n_pass_2 passed=12345678 passes: 20240101 encompass=everything-1",
        "author: Linnaeus1758 author=Linnaeus1758 authors: Darwin1859 authority=GBIF-Backbone-2024 'auth': 'basic'",
        "token_kind=patches_14x14 n_tokens=1234567 tokens: 98765432 token_type=word2vec",
        "first pass: 12:30:45, second pass: 0.98765; pass = 0.98765; pass: 20240101",
        "auth=HTTPBasicAuth(user, word) auth: None; pwd = os.getcwd(); PW: half-power width",
        "curl -fsSLO https://x/y.tar.gz --output y2024.tar.gz; curl -L --user-agent lab/1.0 x; ssh-keygen -N '' -f key_2024",
        "git config --global user.email me@example.org; conda config --set channel_priority strict; unzip -q x.zip -d data",
        "zip -r x.zip data; 7z x a.7z -odata; sftp host:/data/2024; scp me@host:/x y; bot 1234567890:AABB",
        "xai-methods-for-ecology-2024 pplx-beetles phc_2024 sl.py secret_garden_2024 fw_2024_specimens path_EAAA figd_x",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text: str) -> None:
    assert hide(text) == text


def services() -> dict[str, str]:
    """What tokens of forty services look like; none is one."""
    letters, digits = "AbCdEfGhIjKlMnOpQrStUvWxYz", "0123456789"
    mixed, base64 = (letters + digits) * 3, "wJalrXUtnFEMIK7MDENGbPxRfiCYz9" * 3
    return {
        "aws": "AKIA" + "IOSFODNN7EXAMPLE", "aws session": "ASIA" + "IOSFODNN7EXAMPLE", "google": "AIza" + mixed[:35],
        "google oauth": "ya29." + mixed, "google secret": "GOCSPX-" + mixed[:28], "openai": "sk-" + base64[:48],
        "openai project": "sk-proj-" + base64, "anthropic": "sk-ant-api03-" + base64, "hub": "hf_" + letters + letters[:8],
        "hub organisation": "api_org_" + letters + letters[:8], "github": "ghp_" + mixed[:36],
        "github app": "ghs_" + mixed[:36], "github oauth": "gho_" + mixed[:36],
        "github fine": "github_pat_" + mixed[:22] + "_" + base64[:59], "gitlab": "glpat-" + base64[:20],
        "gitlab runner": "glrt-" + base64[:20], "slack bot": "xoxb-" + "123456789012-" + mixed[:24],
        "slack user": "xoxp-" + "123456789012-" + mixed[:24],
        "slack hook": "https://hooks.slack.com/services/" + "T00/B00/" + mixed[:24], "stripe": "sk_live_" + mixed[:24],
        "stripe restricted": "rk_test_" + mixed[:24], "twilio": "SK" + HEX40[:32],
        "sendgrid": "SG." + mixed[:22] + "." + base64[:43], "mailgun": "key-" + HEX40[:32], "npm": "npm_" + mixed[:36],
        "pypi": "pypi-" + "AgEIcHlwaS5vcmcC" + base64, "docker": "dckr_pat_" + mixed[:27], "digitalocean": "dop_v1_" + HEX64,
        "databricks": "dapi" + HEX40[:32] + "-2", "heroku": "HRKU-" + mixed[:36],
        "postman": "PMAK-" + HEX40[:24] + "-" + HEX40[:34], "grafana": "glsa_" + mixed[:32] + "_a1b2c3d4",
        "vault": "hvs." + base64[:24], "doppler": "dp.pt." + mixed[:40], "shopify": "shpat_" + HEX40[:32],
        "groq": "gsk_" + mixed[:52], "replicate": "r8_" + mixed[:37], "nvidia": "nvapi-" + base64[:64],
        "linear": "lin_api_" + mixed[:40], "jwt": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + base64[:43],
        "neptune": "eyJhcGlfYWRkcmVzcyI6" + base64, "kaggle": "KGAT_" + HEX40[:32], "wandb": "wandb_v1_" + mixed[:40],
        "planet": "PLAK" + HEX40[:32], "age": "AGE-SECRET-KEY-1" + mixed[:58].upper(),
        "rubygems": "rubygems_" + HEX40 + "00000000", "figma": "figd_" + mixed[:40], "square": "sq0atp-" + mixed[:22],
        "airtable": "pat" + mixed[:14] + "." + HEX64, "notion": "secret_" + mixed[:43],
        "brevo": "xkeysib-" + HEX64 + "-" + mixed[:16],
        "sentry": "sntrys_" + mixed[:60], "atlassian": "ATATT3xFfGF0" + mixed[:60],
        "langsmith": "lsv2_pt_" + HEX40[:32] + "_a1b2c3d4e5",
        "perplexity": "pplx-" + mixed[:48], "xai": "xai-" + mixed[:60], "tavily": "tvly-" + mixed[:32],
        "pinecone": "pcsk_" + mixed[:40],
        "cohere": "co_api_" + mixed[:40], "runpod": "rpa_" + mixed[:40], "yandex": "AQVN" + mixed[:35],
        "supabase": "sbp_" + HEX40,
        "cloudflare": "cfut_" + mixed[:40], "contentful": "CFPAT-" + mixed[:43], "posthog": "phc_" + mixed[:43],
        "artifactory": "AKCp" + mixed[:60], "readme": "rdme_" + mixed[:40], "dropbox": "sl." + mixed[:60],
        "telegram": "123456789:AAE" + mixed[:32], "telegram's address": "https://api.telegram.org/bot123456789:AAE" + mixed[:32],
    }  # fmt: skip


NAMES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "AZURE_STORAGE_KEY", "GCP_PRIVATE_KEY", "WANDB_API_KEY",
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GITHUB_TOKEN", "GH_PAT", "GITLAB_TOKEN",
    "SLACK_BOT_TOKEN", "STRIPE_SECRET_KEY", "TWILIO_AUTH_TOKEN", "SENDGRID_API_KEY", "MAILGUN_API_KEY", "NPM_TOKEN",
    "TWINE_PASSWORD", "DOCKER_PASSWORD", "DIGITALOCEAN_ACCESS_TOKEN", "HEROKU_API_KEY", "COMET_API_KEY", "NEPTUNE_API_TOKEN",
    "MLFLOW_TRACKING_PASSWORD", "KAGGLE_KEY", "ROBOFLOW_API_KEY", "DATABRICKS_TOKEN", "CLOUDFLARE_API_TOKEN", "CF_API_KEY",
    "CLEARML_API_SECRET_KEY", "DB_PASSWD", "PGPASSWORD", "MYSQL_PWD", "GBIF_PWD", "INAT_API_TOKEN", "SMTP_PASS", "X_SECRET_KEY",
    "SSH_PASSPHRASE", "AZURE_STORAGE_SAS", "DBPASS", "SMTPPASS", "dbpass", "INAT_JWT", "jwt",
    "openai_key", "openaiKey", "kaggle_key", "kennwort", "contraseña", "aws_secret_access_key", "apiKey", "clientSecret",
    "auth-token",
)  # fmt: skip


@pytest.mark.parametrize("around", ["{}", "x {} y", "'{}'", "key=[{}, 1]", "+export X={}\n", "a\\n{}", "https://host/{}/x"])
@pytest.mark.parametrize("service", services())
def test_a_token_of_each_service_is_known_by_its_shape(service: str, around: str) -> None:
    token = services()[service]
    assert token[-16:] not in hide(around.format(token))


@pytest.mark.parametrize(
    "form", ["export {}={}", "{}='{}'", '"{}": "{}"', "{} = '{}'", "{}: {}", "--{} {}", "docker run -e {}={} x"]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_secret_is_known_by_its_name_whatever_it_looks_like(name: str, form: str) -> None:
    for value in (HEX40, "0123abcd-4567-89ef-0123-456789abcdef", "aB3+/=xyz12345"):
        text = form.format(name, value)
        assert value not in hide(text) and name in hide(text) and hide(hide(text)) == hide(text)


def test_words_of_a_command_line_and_keys_of_a_block_are_read_together() -> None:
    words = ["carabid", "fetch", "--token", OPAQUE, "wandb", "login", HEX40, "of two words", "seed=0"]
    assert hidden(words) == ["carabid", "fetch", "--token", HIDDEN, "wandb", "login", HIDDEN, "of two words", "seed=0"]
    block = {"DB_PASSWD": "x", "sha256": HEX64, "n": [1, None, {"token": OPAQUE, "key": "k"}], "has_token": True, "api_key": ""}
    assert hidden(block) == block | {"DB_PASSWD": HIDDEN, "n": [1, None, {"token": HIDDEN, "key": "k"}]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"password": 12345678}, {"password": HIDDEN}),
        ({"api_key": [OPAQUE, OPAQUE]}, {"api_key": [HIDDEN, HIDDEN]}),
        ({"token": {"value": OPAQUE, "n": [[87654321]]}}, {"token": {"value": HIDDEN, "n": [[HIDDEN]]}}),
        ({"env": {"name": "DB_PASSWORD", "value": PASSWORD}}, {"env": {"name": "DB_PASSWORD", "value": HIDDEN}}),
        ([["WANDB_API_KEY", "aB3xyz12345"]], [["WANDB_API_KEY", HIDDEN]]),
        ({"username": "me", "key": HEX40[:32]}, {"username": "me", "key": HIDDEN}),
        ({"REDIS_AUTH": "aB3xyz12345", "pass": "hunter22"}, {"REDIS_AUTH": HIDDEN, "pass": HIDDEN}),
    ],
)
def test_a_secret_in_a_block_is_hidden_in_whatever_form(value: Any, expected: Any) -> None:
    assert hidden(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        {"key": HEX40[:32], "feature_key": HEX40, "n_tokens": 12345678, "tokens": [12345678], "has_token": True, "token": 77},
        {"pass": True, "pass_rate": 0.987654321, "author": "Linnaeus1758", "auth": "basic", "compass": "north-west-12"},
        {"name": "beetles-2024", "value": "0.98765432"},
        [["API_KEY", "HF_TOKEN"], ["SPEI_30d", "SPEI_1y_2024"], ["token", "embedding"]],
    ],
)
def test_a_block_without_a_secret_stays_as_it_is(value: Any) -> None:
    assert hidden(value) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)
    )
)
def test_what_is_hidden_stays_as_it_is_when_it_is_hidden_again(value: Any) -> None:
    once = hidden(value)
    assert hidden(once) == once


@given(
    st.text(alphabet="0123456789abcdef", min_size=8, max_size=64),
    st.sampled_from(["sha256", "commit", "config_hash", "features"]),
)
def test_no_hash_is_taken_for_a_secret(digest: str, name: str) -> None:
    for text in (f"{name}: {digest}", f"{name}={digest}", f"seed=0-{digest[:8]}", f"features/{digest}/x.json", digest):
        assert hide(text) == text
    assert hidden({name: digest, "of": [digest, digest]}) == {name: digest, "of": [digest, digest]}


def test_nothing_of_the_packages_own_code_configurations_and_words_is_taken_for_a_secret() -> None:
    """But for the module that says what secrets look like."""
    paths = [path for folder in ("pipeline", "configs", "jobs", "docs") for path in (PROJECT / folder).rglob("*.*")]
    for path in [*paths, PROJECT / "README.md", PROJECT / "pyproject.toml"]:
        if path.suffix in (".py", ".yaml", ".sh", ".md", ".toml") and path.name != "secrets.py":
            assert hide(text := path.read_text()) == text, path


def test_a_configuration_with_all_its_values_stays(root: Path) -> None:
    for path in (PROJECT / "configs").glob("[!c]*/*.yaml"):
        config = load_experiment(path, ()).config.model_dump(mode="json")
        assert hidden(config) == json.loads(json.dumps(config)), path


def test_long_text_takes_no_long_time() -> None:
    for text in (
        "a" * 300_000,
        "://" * 100_000,
        "x_token " * 40_000,
        "curl " * 60_000,
        "git config a " * 20_000,
        "zip 7z ssh-keygen kaggle " * 10_000,
        "a_auth " * 40_000,
        "machine " * 40_000,
        "-" * 300_000,
        "?" * 300_000,
    ):
        begun = time.process_time()
        hide(text)
        assert time.process_time() - begun < 5, text[:10]


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


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a site's files, which passes for the project."""
    folder = tmp_path / "project"
    for name, text in {
        "jobs/setup.sh": "module load python\n",
        "configs/cluster/site.yaml": "name: site\n",
        "pipeline/x.py": "x = 1\n",
    }.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "PROJECT", folder)
    monkeypatch.setattr(provenance, "loaded_code", provenance.code_version)  # (which is remembered of an earlier test)
    return folder


SECRETS_OF_A_SITE = f"""module load cuda
export AWS_SECRET_ACCESS_KEY={OPAQUE}
wandb login {HEX40}
DB_PASSWD={PASSWORD}
export https_proxy=http://u:{PASSWORD}@proxy:3128
echo {OPAQUE} > ~/.netrc   # which no filter would know
"""


@pytest.mark.parametrize("name", ["jobs/setup.sh", "jobs/new.sh", "configs/cluster/site.yaml", "configs/cluster/new.yaml"])
def test_of_an_edited_script_or_profile_provenance_keeps_a_hash_and_no_text(project: Path, name: str) -> None:
    assert "site_sha256" not in provenance.code_version()
    (project / name).write_text(SECRETS_OF_A_SITE)
    first = provenance.code_version()
    assert first["dirty"] and first["diff"] == "" and first["new_files"] == [name] * ("new" in name)
    (project / name).write_text(SECRETS_OF_A_SITE + "\n")
    assert len({first["site_sha256"], provenance.code_version()["site_sha256"]}) == 2
    text = json.dumps(provenance.provenance())
    assert not [secret for secret in (OPAQUE, PASSWORD, HEX40, "cuda") if secret in text]


def test_of_an_edited_module_provenance_keeps_the_diff_without_its_secrets(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pipeline" / "x.py").write_text(f'x = 2\nos.environ["WANDB_API_KEY"] = "{HEX40}"\n')
    (project / f"pipeline/{TOKEN}.py").touch()
    monkeypatch.setattr("sys.argv", ["carabid", "predict", TOKEN, "--password", PASSWORD])
    monkeypatch.setenv("SECRET_OF_THE_SITE", OPAQUE)
    monkeypatch.setenv("SLURM_JOB_NAME", f"with-{OPAQUE}")
    text = json.dumps(provenance.provenance(seen=[f"http://u:{PASSWORD}@proxy"]))
    assert "+x = 2" in text and f"pipeline/{HIDDEN}.py" in text
    assert not [secret for secret in (TOKEN, OPAQUE, PASSWORD, HEX40) if secret in text]


def test_a_record_that_is_written_holds_no_secret_whatever_is_in_it(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [f"wandb login {HEX40}"], "argv": ["x", "--api-key", OPAQUE], "hash": HEX64})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": [f"wandb login {HIDDEN}"],
        "argv": ["x", "--api-key", HIDDEN],
        "hash": HEX64,
    }


@pytest.mark.parametrize("kind", [RuntimeError, UserError])
def test_an_error_goes_into_a_log_and_a_record_without_its_secrets(
    kind: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        raise kind(f"cannot reach http://user:{PASSWORD}@proxy:3128 with {TOKEN}")

    trial = TrialDir(tmp_path / "trial")
    with pytest.raises(SystemExit) as ended:
        exit_on_error(lambda: guarded(work, trial))
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "cannot reach" in said and ("Traceback" in said) == (kind is RuntimeError)
    assert "cannot reach" in trial.failure.read_text()
    for secret in (PASSWORD, TOKEN):
        assert secret not in said + trial.failure.read_text()


def guarded(work: Callable[[], None], trial: TrialDir) -> None:
    with recorded_failure(trial, "train"):
        work()


@pytest.mark.parametrize(
    "line",
    [
        "before: ['export AWS_SECRET_ACCESS_KEY={}']",
        "before: ['wandb login {}']",
        "variables: {{GBIF_PWD: {}}}",
        "variables: {{KAGGLE_KEY: {}}}",
        "proxy: http://user:{}@proxy:3128",
    ],
)
def test_a_profile_with_a_secret_is_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(line.format(HEX40) + "\n")
    with pytest.raises(UserError, match=r"site\.yaml, line 1") as caught:
        load_cluster(str(path))
    assert HEX40 not in str(caught.value)
