"""Hostile values, and ways to spoil a tree of values or a text."""

from __future__ import annotations

import copy
import random
from typing import Any

Tree = dict[str, Any]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, -(10**400), 1e308, 1e-320, float("inf"), float("nan"), "", " ", "null", "a" * 5000,
    "a\0b", "\u202e", "é", "e\u0301", "~nobody/x", "/", "..", ".", "//server/share", "C:\\data\\x", "$HOME", "$(date)", "`id`",
    "hf-hub:", "local-dir:", "timm:", "pixels:0", "a/b/c", "1e-4", "010", "0x1f", "1_000", "yes", "2024-01-02",
    "10:00:00", "%s",
    "{}", [], {}, [[]], [None], ["a", "a"], [1, "a", None], {"": None}, {1: 2}, {True: [1]}, {None: None}, {"kind": "none"},
    {"kind": None}, {"kind": []}, {"kind": {"kind": "lora"}}, {"a.b": 1}, {"name": {"name": "x"}}, nested(30),
    "beetles.py", "\n",
)  # fmt: skip
TEXTS = (
    "!!timestamp x", "!!python/object/apply:os.system [id]", "!!binary a", "!!set {a, b}", "!!int x", "!!float []", "!!null x",
    "!!bool maybe", "!!omap [a: 1]", "!!pairs [a: 1]", "!x y", "&o {lr: *o}", "*nowhere", "{<<: 1}", "{<<: {a: 1}}", "'", '"',
    "[", "]", "{", "}", "[1, 2", "{a: 1", "@x", "`x", "%x", "? a", ": b", "- a", "|", ">", "#", "a: b: c", "\t", "[" * 500,
    "{a: " * 300, "1e-4,", ",", ",,", "[],[]", "nan", ".nan", "-.inf", "1e999", "9" * 400, "\x01", "\x7f", "\ufeff", "ü",
    "=", "==",
)  # fmt: skip
"""Text where YAML is read."""


def paths_in(tree: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in a tree of blocks, blocks before what is in them."""
    if not isinstance(tree, dict):
        return []
    return [path for key, value in tree.items() for path in [(*prefix, key), *paths_in(value, (*prefix, key))]]


def spoil(tree: Tree, draw: random.Random) -> None:
    """Set, remove, rename or misplace one value of a tree, in place."""
    if not (paths := paths_in(tree)):
        return
    *above, last = draw.choice(paths)
    block = tree
    for key in above:
        block = block[key]
    how = draw.randrange(6)
    if how <= 2:
        block[last] = copy.deepcopy(draw.choice(VALUES))
    elif how == 3:
        del block[last]
    elif how == 4:
        block[mistyped(str(last), draw)] = block.pop(last)
    else:
        tree[str(draw.choice(paths)[-1])] = block.pop(last)


def mistyped(word: str, draw: random.Random) -> str:
    """A word with a letter left out, doubled, swapped or of the other case."""
    if not word:
        return "x"
    i = draw.randrange(len(word))
    return draw.choice((word[:i] + word[i + 1 :], word[: i + 1] + word[i:], word[:i] + word[i:].swapcase(), word[::-1]))


def spoil_text(text: str, draw: random.Random) -> str:
    """A text with a line or a few characters put in, taken out, doubled or swapped."""
    i, how = draw.randrange(len(text) + 1), draw.randrange(6)
    if how == 0:
        return text[:i] + draw.choice(TEXTS) + text[i:]
    if how == 1:
        return text[:i] + text[i + draw.randrange(1, 20) :]
    lines = text.splitlines(keepends=True) or [""]
    n = draw.randrange(len(lines))
    if how == 2:
        return "".join([*lines[:n], lines[n], *lines[n:]])
    if how == 3:
        return "".join([*lines[:n], draw.choice(("\t", "  ", "- ", "? ", "")) + lines[n].lstrip(), *lines[n + 1 :]])
    if how == 4:
        head, colon, _ = lines[n].partition(":")
        return "".join([*lines[:n], f"{head}{colon} {draw.choice(TEXTS)}\n", *lines[n + 1 :]])
    return text.replace(draw.choice(text or " "), draw.choice(TEXTS), 1)


def spoil_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes with some flipped, cut off, doubled, overwritten or put in."""
    i, how = draw.randrange(len(content) + 1), draw.randrange(8)
    if how == 0:
        return content[:i]
    if how == 1:
        return b"" if draw.random() < 0.2 else content[i:]
    if how == 2:
        return content[:i] + draw.randbytes(draw.randrange(1, 40)) + content[i:]
    if how == 3:
        return content[:i] + content[i + draw.randrange(1, 40) :]
    if how == 4:
        return draw.randbytes(draw.randrange(1, 400))
    if how == 5:
        return content[:i] + bytes(min(len(content) - i, 64)) + content[i + 64 :]
    return (
        b"".join((content[:i], bytes([content[i] ^ 1 << draw.randrange(8)]), content[i + 1 :])) if i < len(content) else content
    )
