"""Tokens and passwords: how they are told from other text, so that none is kept beside results or printed.

They come from the environment (HF_TOKEN) or the Hub's own store and go to the Hub's libraries, never through Carabid.
This module finds those that a person has put elsewhere: into a configuration, a job script, the address of a proxy.
"""

import os
import re

HIDDEN = "[hidden]"
VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Where the Hub's libraries look for a token."""
SHORTEST = 8
"""A shorter value of such a variable is no token, and would be found inside words."""
PATTERNS = (
    re.compile(r"()\b(?:hf|api_org)_[A-Za-z0-9_]{20,}"),  # the Hub's own tokens
    re.compile(r"(://)[^/\s@'\"]+(?=@)"),  # https://user:password@host
    # What a shell assigns; a value that only names a variable ($HF_TOKEN) tells nothing.
    re.compile(r"((?:TOKEN|SECRET|PASSWORD|API_KEY)=)(?![\"']?\$)(?:\"[^\"]*\"|'[^']*'|\S+)"),
)
"""What stands before a secret, as the first group, and the secret."""


def hide(text: str) -> str:
    """`text` with each token and password replaced by a word that says so."""
    for value in (os.environ.get(name, "") for name in VARIABLES):
        text = text.replace(value, HIDDEN) if len(value) >= SHORTEST else text
    for pattern in PATTERNS:
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return text
