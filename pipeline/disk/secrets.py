"""Tokens and passwords: how they are told from other text, so that none is kept beside results or printed.

They come from the environment (HF_TOKEN) or the Hub's own store and go to the Hub's libraries, never through Carabid.
This module finds those that a person has put elsewhere: into a configuration, a job script, a command line, the address of a
proxy. It is the one filter that every record passes (`writing.write_json`), and what is said of an error.

A secret is told by its shape, by what stands before it (a name, an option, a command), or because it is the value of such a
variable here. What merely looks random (a commit, a hash of content) is none.
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

HIDDEN = "[hidden]"
SHORTEST = 8
"""A shorter value of a variable is no token, and would be found inside words."""
SHAPES = (
    r"(?:hf|api_org)_[A-Za-z0-9]{20,}",  # the Hub
    r"A(?:KIA|SIA|BIA|CCA)[0-9A-Z]{12,}",  # AWS
    r"AIza[\w-]{20,}|ya29\.[\w.-]{16,}|GOCSPX-[\w-]{16,}",  # Google
    r"sk-(?:ant|proj|svcacct|admin|or|lf)-[\w-]{12,}|sk-[A-Za-z0-9]{20,}",  # OpenAI, Anthropic, OpenRouter
    r"gh[oprsu]_[A-Za-z0-9]{16,}|github_pat_\w{16,}",
    r"gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent|imt|oas)-[\w.-]{16,}",  # GitLab
    r"xox[a-z](?:\.[a-z]+)?-[\w-]{8,}|xapp-[\w-]{16,}",  # Slack
    r"[srp]k_(?:live|test)_\w{8,}|whsec_[\w+/=-]{16,}",  # Stripe
    r"(?:SK|AC)[0-9a-f]{32}|SG\.[\w-]{12,}\.[\w-]{12,}|key-[0-9a-f]{32}",  # Twilio, SendGrid, Mailgun
    r"npm_[A-Za-z0-9]{20,}|pypi-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{16,}|rubygems_[0-9a-f]{16,}|dckr_[po]at_[\w-]{16,}",
    r"do[oprt]_v1_[0-9a-f]{16,}|dapi[0-9a-f]{32}(?:-\d+)?|HRKU-[\w-]{16,}",  # DigitalOcean, Databricks, Heroku
    r"PMAK-[\w-]{16,}|NRAK-\w{16,}|glsa_\w{16,}|hv[bsr]\.[\w-]{16,}|dp\.\w{2,4}\.\w{16,}|shp(?:at|ca|pa|ss)_\w{16,}",
    r"gsk_\w{20,}|r8_\w{20,}|nvapi-[\w-]{20,}|lin_api_\w{16,}|ntn_\w{20,}|KGAT_\w{16,}|wandb_v1_\w{16,}|PLAK\w{16,}",
    r"eyJ[\w+/-]{16,}={0,2}(?:\.[\w-]+=*)*",  # JSON in base64: a JWT, Neptune's
    r"-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY[A-Z ]*-----|\Z)|AGE-SECRET-KEY-1\w{16,}",
    r"(?<=hooks\.slack\.com/services/)[\w/]+|(?<=discord\.com/api/webhooks/)[\w/-]+|(?<=webhook\.office\.com/webhookb2/)[\w/@-]+",
    r"figd_[\w-]{20,}|sq0(?:atp|csp)-[\w-]{20,}|EAACEdEose0cBA\w{16,}|EAAA[\w-]{56,}",  # Figma, Square, Facebook
    r"pat\w{14}\.[0-9a-f]{64}",  # Airtable
    r"xkeysib-[0-9a-f]{32,}(?:-\w+)?|sntry[su]_[\w+/=]{32,}|ATATT3x[\w=-]{20,}|lsv2_(?:pt|sk)_\w{32,}",  # Brevo … LangSmith
    r"(?:pplx|xai)-[A-Za-z0-9]{32,}|tvly-[A-Za-z0-9-]{28,}|pcsk_\w{32,}|co_api_\w{24,}|rpa_[A-Za-z0-9]{32,}|AQVN[\w-]{32,}|sbp_[0-9a-f]{40}",
    r"(?:cfut|rdme)_[A-Za-z0-9]{32,}|CFPAT-[\w-]{32,}|ph[cx]_[A-Za-z0-9]{32,}|AKCp[A-Za-z0-9]{40,}|sl\.[\w-]{56,}|secret_[A-Za-z0-9]{40,}",
    r"(?:bot)?\d{8,10}:AA[\w-]{30,}",  # Telegram
)
"""Secrets that are known by what they begin with."""
NAME = r"""[\w.-]*(?:TOKEN|SECRET|PASSW(?:OR)?[DT]|PASSPHRASE|PASSCODE|CREDENTIALS?|_PWD|_PASS|_PAT|_PW|_SAS|(?-i:[A-Z0-9]_KEY)
    |(?<![A-Za-z])(?:JWT|KENNWORT|MOT_DE_PASSE|CONTRASE[ÑN]A|(?:DB|MY|USER|SMTP|FTP|SQL|MAIL|LDAP|ROOT|ADMIN)PASS)
    |(?-i:[A-Z0-9]PASS)(?<!COMPASS)(?<!BYPASS)(?<!(?:HIGH|BAND)PASS)(?<!(?:LOW|ALL|ONE|TWO|SUR)PASS)(?<!(?:FIRST|MULTI)PASS)
    |(?<![A-Za-z])(?:OPENAI|ANTHROPIC|OPENROUTER|MISTRAL|COHERE|GROQ|GEMINI|KAGGLE|WANDB|COMET|NEPTUNE|ROBOFLOW|LABELBOX|ZOTERO
        |MAPBOX|GBIF|INAT|EBIRD|ENTREZ|NCBI|CDSAPI|PLANET|COPERNICUS|GOOGLE|AWS|AZURE|GITHUB|SLACK|STRIPE|SENDGRID|CLIENT)[_-]?KEY
    |(?:API|ACCESS|ACCOUNT|AUTH|PRIVATE|SECRET|SIGNING|ENCRYPTION|MASTER|SUBSCRIPTION|DEPLOY|LICENSE|STORAGE)[_-]?KEY)
    (?![A-Za-z]|_(?:FILE|PATH|DIR|URL|TYPE|NAME|COUNT|RATE|DIM|SIZE|LENGTH|LIMIT|TTL|EXPIR))
    (?:(?-i:_[A-Z0-9]+)+|[_-](?:id|key|value|secret|\d+))?"""
"""What a variable, an option or a key is called whose value is a secret: DB_PASSWD, aws_secret_access_key, apiKey, GBIF_PWD."""
WEAK = r"(?:[\w.-]*_)?AUTH|PASS|PW|(?-i:pwd)"
"""What is called so is a secret only if it looks like one: there is more of that name (a pass over the data, PWD the folder)."""
ALONE = re.compile(r"[\d.,:%/+-]*")
"""A number, a time: none where the name is weak."""
NAMED = rf"""(?P<before>(?<![\w.-])(?:
    --?(?:{NAME}|pass|pw)(?:\s*=\s*|\s+)                   # --token …
    |(?:setenv|set\s+-\w+)\s+{NAME}\s+                      # as csh and fish say it
    |(?:{NAME}|(?P<weak>{WEAK}))(?:\\?["'])?\]?\s*(?:=>|<-|[:=]|(?<=["']),)\s*  # DB_PASSWORD=…, os.environ["TOKEN"] = "…"
    ))(?!\\?"?\$[\w({{]|`)                                  # (the name of a variable, or a command, tells nothing)
    (?P<value>\\?\$?(?:"(?:\\.|[^"\\\n])*(?:"|$)|'(?:\\.|[^'\\\n])*(?:'|$))|[^\s"']\S*)"""
PLACES = r"""
    (://)[^\s/:@'"]+:[^\s'"]+(?=@[\w.-]+:\d)                   # https://user:password@host:port, whatever is in the password
    (://)[^\s/'"]+(?=@)                                         # https://token@host
    (?<![\w:/@.-])([\w.-]+:)(?!//)[^\s@/'":]{3,}(?=@[\w.-]+:\d)  # user:password@proxy:3128
    ([?&](?:[\w-]*(?:sig|signature|key|code|token|credential|secret|password|keyid|auth|pwd|pass|jwt)|x-amz-[\w-]+)=)[^&\s"'\#]+
    (\bAuthorization["']?\s*[:=]\s*["']?(?:(?:Bearer|Basic|Token|Digest|ApiKey|Bot)\ +)?)[^\s"']+
    (\bBearer\s+)(?=\S*\d)[\w.~+/-]{8,}=*
    (\bmachine[\s+-]+\S+(?:[\s+-]+(?:login|account)[\s+-]+\S+)*[\s+-]+password[\s+-]+)\S+  # .netrc
    (\b(?:wandb|comet|neptune|kaggle|roboflow|huggingface-cli|hf\ auth)\s+login\s+(?:--[\w-]+(?:=\S+)?\s+)*)(?!-)[\w-]{16,}
    (\bwandb\.login\(\s*(?:key\s*=\s*)?)["'][^"']+["']
    (\b(?:curl|wget)\b[^\n|;]{0,300}?\s-u\s*)\S+
    (\bcurl\b[^\n|;]{0,300}?\s(?:-[a-z]*u|--(?:proxy-)?user[\s=])\s*)(?=\S+:)\S+
    (\blftp\b[^\n|;]{0,300}?\s(?:-u|--user)[\s=]*[^\s,]+,)\S+
    (\b(?:sftp|ssh|ftp|scp|smbclient)\s+[\w.-]+:)[^\s@/:]{3,}(?=@)
    (\b(?:aws|git|gcloud|npm|pip|yarn|conda|dvc)\s+(?:configure|config|remote\s+modify)\s+(?:[\w-]+\s+){0,5}?NAME\s+)(?!-)\S+
    (-pass(?:in|out)?[\s=]+["']?pass:)\S+                        # openssl
    (\bssh-keygen\b[^\n|;]{0,300}?\s-[NP]\s*)(?!""|'')\S+
    (\b(?:(?:un)?zip\b[^\n|;]{0,300}?\s-P|7z[ar]?\b[^\n|;]{0,300}?\s-p)\s*)[^\s-]\S*
    (\b(?:set-)?cookie["']?\s*:\s*["']?(?=[\w-]+=))[^\n"']+
    (\blogin\(\s*["'][^"'\n]*["']\s*,\s*)["'][^"'\n]+["']        # gbif.login("me", "password")
    ("username\\?"\s*:\s*\\?"[^"]*"\s*,\s*\\?"key\\?"\s*:\s*\\?")[^\s"\\]+  # kaggle.json
    (\bkaggle\b[^\n]{0,80}\bkey\W{1,4})[0-9a-f]{32}\b
    (\burl\s*:\s*\S*(?:climate|atmosphere|ecmwf|copernicus)\S*\s+key\s*:\s*)\S+                  # .cdsapirc
    ((?<![\w.-])key["']?\s*:\s*["']?)\d{1,9}:[0-9a-f-]{32,36}\b   # its older form
    (\b(?:sshpass|(?:docker|podman|helm)\s+login)\b[^\n|;]{0,300}?\s-p\s*)\S+
    (\bmysql\w*\b[^\n|;]{0,300}?\s-p)\S+
    (\becho\s+(?:-n\s+)?)[^\s|]+(?=\s*\|[^\n]{0,100}(?:login|stdin|with-token))
    (\$\{NAME:?[-=+])[^}]+(?=\})                                # ${DB_PASSWORD:-what it is by default}
"""
"""What stands before a secret, as the group, and the secret; one a line."""
SHAPE = re.compile(rf"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))(?:{'|'.join(SHAPES)})")
IN_PLACES = [re.compile(line.replace("NAME", NAME), re.I | re.X) for line in PLACES.strip().splitlines()]
BY_NAME = re.compile(NAMED, re.I | re.X | re.M)
SECRET_NAME, WEAK_NAME = (re.compile(name, re.I | re.X) for name in (NAME, WEAK))
NO_SECRET = re.compile(r"|true|false|none|null|\d{1,4}|(?-i:[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)", re.I)
"""No value, or the name of a variable."""
PLACE = re.compile(
    r"(?:[~.]{1,2}|/(?:home|scratch|etc|run|var|opt|usr|mnt|data|projects?|work|tmp|gpfs|lustre|users?))/\S*|/\S+\.\w{1,5}"
)
OPAQUE = re.compile(r"(?=\S*\d)[^\s(){}\[\]]{8,}|[\w+/=-]{20,}")
"""What without quotes, after a space, is no word of a sentence or a program."""
PASSWORD = re.compile(r"(?=\S*[\d!#$%&*+@^~?])[^\s(){}\[\]]{4,}")
ASSIGNED = re.compile(r"[^\s(){}\[\]]+")
"""The same of what is called a password, after a colon and after an equals sign."""
LOGIN = re.compile(r"://[^/\s:@]*:([^/\s]+)@")


def hide(text: str) -> str:
    """`text` with each token and password replaced by a word that says so."""
    return _hide(_values_here(), text)


def hiding() -> Callable[[str], str]:
    """`hide` for the lines of files that are much alike: the variables of this process are looked through once, each line too."""
    return partial(_hide_line, _values_here())


def hidden(value: Any) -> Any:
    """A JSON value with all text in it as `hide` gives it, a command line's words together."""
    return _hidden(value, partial(_hide_again, _values_here()))


def is_secret(name: str, value: str) -> bool:
    """Whether a variable, a key or an option of this name holds a secret, if its value is this."""
    if NO_SECRET.fullmatch(value):
        return False
    return _is_secret_name(name) or bool(WEAK_NAME.fullmatch(name) and _looks_secret(name, value))


def complain(error: object) -> None:
    """Say on stderr, which is often a log, what went wrong."""
    print(f"carabid: {hide(str(error))}", file=sys.stderr, flush=True)


def print_traceback(error: BaseException) -> None:
    """As Python would, on stderr."""
    print(hide("".join(traceback.format_exception(error))), end="", file=sys.stderr, flush=True)


def _hide(values: Sequence[str], text: str) -> str:
    for value in values:
        text = text.replace(value, HIDDEN)
    text = SHAPE.sub(HIDDEN, text)
    for pattern in IN_PLACES:
        text = pattern.sub(_after, text)
    return BY_NAME.sub(_named, text)


_hide_line = lru_cache(10_000)(_hide)
_hide_again = lru_cache(500)(_hide)
"""Records of the trials of one process say much alike: the changes of its code may be long."""


def _after(match: re.Match[str]) -> str:
    """What was found in a place, hidden, unless it is already, or names a variable."""
    secret = match[0].removeprefix(match[1])
    return match[0] if secret.lstrip("\"'").startswith((HIDDEN, "$")) else match[1] + HIDDEN


def _named(match: re.Match[str]) -> str:
    """What stands after a secret's name, hidden if it is a secret."""
    before, value = match["before"], match["value"]
    bare = value.strip("\\\"'$")
    if bare.startswith(HIDDEN) or NO_SECRET.fullmatch(bare) or PLACE.fullmatch(bare):
        return match[0]
    if match["weak"] and not before.rstrip().endswith(","):
        name, is_whole = match["weak"], value[-1] in "\"'" or before[-1] == "="
        return before + HIDDEN if _looks_secret(name, bare.rstrip("}]),;"), is_whole) else match[0]
    if before.rstrip().endswith(","):  # two names in a list, of columns say, are no name and its value
        return before + HIDDEN if PASSWORD.fullmatch(bare) or OPAQUE.fullmatch(bare) else match[0]
    is_tight = value[-1] in "\"'" or before[-1] == "=" or before.startswith(("-", "set"))
    looks = OPAQUE if "PASS" not in before.upper() else PASSWORD if ":" in before else ASSIGNED
    return before + HIDDEN if is_tight or looks.fullmatch(bare.rstrip("}]),;")) else match[0]


def _looks_secret(name: str, value: str, is_whole: bool = True) -> bool:
    """Whether a value under a weak name is one; a password that is quoted, or follows an equals sign, may be short."""
    if ALONE.fullmatch(value) or PLACE.fullmatch(value):
        return False
    if "auth" in name.lower() or not is_whole:
        return OPAQUE.fullmatch(value) is not None
    return PASSWORD.fullmatch(value) is not None or (name in ("pwd", "PASS", "PW") and ASSIGNED.fullmatch(value) is not None)


def _hidden(value: Any, text: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        found = {key: _under(str(key), item, text) for key, item in value.items()}
        return found | dict.fromkeys(_named_beside(value), HIDDEN)
    if isinstance(value, list | tuple):
        return _words([_hidden(item, text) for item in value], text)
    return value


def _under(key: str, value: Any, text: Callable[[str], str]) -> Any:
    """A value in a block: all of it, where the key is called so; of lists and blocks each part."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return HIDDEN if is_secret(key, str(value)) else _hidden(value, text)
    if isinstance(value, list | tuple) and _is_secret_name(key):
        return [_under(key, item, text) for item in value]
    if isinstance(value, dict) and _is_secret_name(key):
        return {inner: _under(key, item, text) for inner, item in value.items()}
    return _hidden(value, text)


def _named_beside(block: dict[Any, Any]) -> list[str]:
    """Keys of a block whose value is a secret by what stands beside: {"name": "DB_PASSWORD", "value": …}, kaggle.json."""
    name, value, key = (block.get(part) for part in ("name", "value", "key"))
    found = ["value"] if isinstance(name, str) and isinstance(value, str) and is_secret(name, value) else []
    return [*found, "key"] if "username" in block and isinstance(key, str) and OPAQUE.fullmatch(key) else found


def _words(values: list[Any], text: Callable[[str], str]) -> list[Any]:
    """A list in which `--token` and what follows it may be words of one command line."""
    if len(values) < 2 or not all(isinstance(value, str) for value in values):
        return values
    if len(values) == 2 and OPAQUE.fullmatch(values[1]) and is_secret(*values):
        return [values[0], HIDDEN]
    words = [re.sub(r"\s", "\0", value) for value in values]
    seen = text(" ".join(words)).split(" ")
    if len(seen) != len(words):
        return values
    return [value if now == word else now for value, word, now in zip(values, words, seen, strict=True)]


def _values_here() -> tuple[str, ...]:
    """Values of this process's variables that are secrets, the longest first: one may be a part of another."""
    return _values_in(tuple(os.environ.items()))


@lru_cache(1)
def _values_in(variables: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """The same of these variables, which hardly ever change."""
    named = [value for name, value in variables if is_secret(name, value) and not PLACE.fullmatch(value)]
    logins = [login[1] for _, value in variables if (login := LOGIN.search(value))]
    return tuple(sorted({value for value in named + logins if len(value) >= SHORTEST}, key=len, reverse=True))


@cache
def _is_secret_name(name: str) -> bool:
    return bool(SECRET_NAME.fullmatch(name))
