"""Uploading a release to the Hugging Face Hub: one commit, private unless it is said otherwise. The token comes from where the
Hub's own library looks for it, and goes nowhere else."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from pipeline.disk.reading import in_short
from pipeline.disk.secrets import hide
from pipeline.errors import UserError, WorkError
from pipeline.export.release import Release

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf:"
NAME = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
OURS = ("model.safetensors", "classifier.skops", "adapter/*", "text_adapter/*")
"""What an earlier release may have left that this one has not, and would be loaded with it."""
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN, as an account that may write there."


def parse_repository(to: str) -> str:
    """`owner/name` of `hf:owner/name`. Raises UserError for anything else."""
    name = to.removeprefix(PREFIX)
    if not to.startswith(PREFIX) or not NAME.fullmatch(name) or "--" in name or ".." in name:
        raise UserError(
            f"--to {to}: write hf:owner/name, a model of the Hugging Face Hub: letters, digits, and -, _ or . between them"
        )
    return name


def upload(release: Release, public: bool) -> str:
    """Upload it as one commit, in which older files of a model that are no part of it go; its address, and who may read it.

    Raises UserError for a model that is there already and public, unless `public` says that this is meant, and WorkError where
    the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        return _upload(api, release, public)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        told = {401: f"it does not know who asks. {LOGIN}", 403: f"this account may not. {LOGIN}"}
        raise WorkError(f"{release.repository}: the Hub refuses: {told.get(status or 0) or hide(in_short(error))}") from None
    except (OSError, ValueError) as error:
        raise WorkError(f"{release.repository}: not published: {hide(in_short(error))}") from None


def _upload(api: HfApi, release: Release, public: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    name = release.repository
    where = api.create_repo(name, private=not public, exist_ok=True)
    is_private = api.model_info(name).private
    if not public and is_private is False:
        raise UserError(f"{name} is there already and everybody may read it: say --public if that is meant, or name another one")
    there = [file for file in api.list_repo_files(name) if any(fnmatch(file, ours) for ours in OURS)]
    changes = [
        CommitOperationAdd(path, str(what) if not isinstance(what, bytes) else what) for path, what in release.files.items()
    ]
    gone = [CommitOperationDelete(file) for file in there if file not in release.files]
    api.create_commit(name, [*changes, *gone], commit_message="Publish a model trained with Carabid")
    return f"{where} ({'private' if is_private else 'public'})"
