"""The Hugging Face Hub and its cache: where there a model or data set lies, and what to say of one that cannot be had.

Its libraries raise errors of many kinds, one inside the other. Told apart are: it is not in the cache and the Hub was not
or could not be asked (then `carabid fetch` helps), the Hub has no such thing for us, and what is in the cache is of no use.
This module loads no torch.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

import yaml

from pipeline.disk.reading import in_short
from pipeline.errors import NotFetched, UserError, WorkError, causes

Kind = Literal["models", "datasets"]
COMMIT = re.compile(r"[0-9a-f]{40}")
FRONT_MATTER = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
"""Of a card: the YAML before its text."""
REFUSALS = ("RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError", "DatasetNotFoundError")
"""By name: `datasets` has one of its own, and need not be imported to be asked."""


def cache() -> Path:
    """The Hub's cache on this machine."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_repository(name: str, kind: Kind) -> Path:
    """The folder of `owner/name` in the cache, whether it is there or not."""
    return cache() / f"{kind}--{name.replace('/', '--')}"


def commit_of(name: str, revision: str | None, kind: Kind) -> str | None:
    """The commit a revision stands for: itself, or what the cache noted for a tag or branch; None if unknown."""
    wanted = revision or "main"
    if COMMIT.fullmatch(wanted):
        return wanted
    note = cached_repository(name, kind) / "refs" / wanted
    return note.read_text().strip() if note.is_file() else None


def snapshot_files(name: str, revision: str | None) -> list[Path]:
    """A model's files in the cache."""
    commit = commit_of(name, revision, "models")
    folder = cached_repository(name, "models") / "snapshots" / (commit or "none")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def stated_license(name: str, kind: Kind) -> str | None:
    """The licence that the card of `owner/name` states, if the card is in the cache. Asks nobody."""
    card = cached_repository(name, kind) / "snapshots" / (commit_of(name, None, kind) or "none") / "README.md"
    with suppress(OSError, ValueError, yaml.YAMLError):
        if found := FRONT_MATTER.match(card.read_text(encoding="utf-8")):
            said = dict(yaml.safe_load(found[1]) or {})
            stated = said.get("license_name") if said.get("license") == "other" else said.get("license")
            return stated if isinstance(stated, str) else None
    return None


def not_loaded(what: str, error: Exception, place: Path) -> UserError | WorkError:
    """What to raise where `what` could be loaded neither from `place` in the cache nor from the Hub."""
    from huggingface_hub import constants

    errors = list(causes(error, hidden=True))
    if refusal := next(filter(_is_refusal, errors), None):
        return UserError(
            f"{what}: the Hub does not have it, or does not show it to this account: {in_short(refusal)} Check the name. "
            "What is private or gated needs `hf auth login`, or a token in HF_TOKEN, of an account that may read it."
        )
    if not any(map(_is_silence, errors)):
        return NotFetched(
            f"{what}: what lies in {place} cannot be used: {in_short(error)} If it is incomplete or damaged, remove it."
        )
    if constants.HF_HUB_OFFLINE:
        return NotFetched(f"{what}: not all of it is in the cache ({place}), and HF_HUB_OFFLINE keeps it from being fetched.")
    return NotFetched(
        f"{what}: not all of it is in the cache ({place}), and the Hub ({constants.ENDPOINT}) cannot be reached: "
        # The files that are not there are only what follows from it.
        f"{in_short(next((e for e in reversed(errors) if not isinstance(e, FileNotFoundError)), error))}"
    )


def was_asked(error: Exception) -> bool:
    """Whether an error came of asking the Hub, or of not being able to."""
    return any(_is_refusal(e) or _is_silence(e) for e in causes(error, hidden=True))


def _is_refusal(error: BaseException) -> bool:
    return any(kind.__name__ in REFUSALS for kind in type(error).__mro__)


def _is_silence(error: BaseException) -> bool:
    """Whether nobody has answered: nothing was asked, or there is no network."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError)
