"""The tokenizers of open_clip's models: its own byte-pair encoding, or Hugging Face's with open_clip's cleaning (SigLIP's takes
punctuation and capitals away)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

import open_clip
from jaxtyping import Int
from torch import Tensor

from pipeline import hub
from pipeline.backbones.base import refuse_code
from pipeline.backbones.open_clip_names import checked_name, whole_architecture
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB, LOCAL
from pipeline.disk.reading import in_short
from pipeline.errors import UserError


class Tokens:
    """A tokenizer of open_clip: a text → the ids of its tokens, cut and padded to the context's length."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # The first call sets how Hugging Face's cut and pad: later ones, perhaps from several threads, then change nothing.
        self.context_length = len(self("a"))

    def __call__(self, text: str) -> Int[Tensor, " tokens"]:
        return cast(Tensor, self.tokenizer([text])[0])

    def description(self) -> str:
        """Text that changes whenever the tokens of some text may."""
        own = getattr(self.tokenizer, "tokenizer", None)
        modes = {name: getattr(self.tokenizer, name, None) for name in ("strip_sep_token", "tokenizer_mode")}
        clean = getattr(getattr(self.tokenizer, "clean_fn", None), "__name__", None)
        said = {"kind": type(self.tokenizer).__name__, "tokens": self.context_length, "clean": clean, **modes}
        said["vocabulary"] = hashlib.sha256(_vocabulary(self.tokenizer if own is None else own).encode()).hexdigest()
        return f"open_clip: {json.dumps(said)}"

    def save(self, folder: Path) -> None:
        """Write the files that open_clip reads it from, where it does not bring them itself."""
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(folder)


def _vocabulary(tokenizer: Any) -> str:
    """All that a tokenizer has learnt."""
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        return cast(str, backend.to_str())
    return json.dumps(tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else tokenizer.encoder, sort_keys=True)


def load_tokens(config: blocks.OpenClip) -> Tokens:
    """The tokenizer of a model. Raises UserError where its files are not to be had, NotFetched where the cache has them not."""
    name = checked_name(config)
    try:
        return Tokens(open_clip.get_tokenizer(name))
    except Exception as error:  # open_clip raises whatever its libraries do
        refuse_code(name, error)
        if name.startswith(LOCAL):
            folder = name.removeprefix(LOCAL)
            raise UserError(f"The tokenizer's files in {folder} are missing or damaged: {in_short(error)}") from error
        named = whole_architecture(config)["text_cfg"].get("hf_tokenizer_name") or name.removeprefix(HUB)
        raise hub.not_loaded(f"The tokenizer of {name}", error, hub.cached_repository(named, "models")) from error
