from typing import Any


def selection(metric: str, truth: Any, p: Any) -> float | None:
    return None
