"""What trials of one process share: what one has loaded, the next need not load again. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Shared:
    """The last of each kind of thing (tables and features, a bank, a backbone) that trials of this process have asked for.

    Only the last one: of banks and backbones two may not fit into memory. So trials that share things best follow one another.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Any, Any]] = {}

    def get(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        """The thing of this kind that `key` tells from others; made anew, when the one before is let go, if that had another."""
        known = self._kept.get(kind)
        if known is None or known[0] != key:
            known = None  # or the one before would stay as long as the next one is made
            self._kept.pop(kind, None)
            known = self._kept[kind] = key, make()
        return known[1]

    def let_go(self) -> None:
        """Keep nothing any more."""
        self._kept.clear()
