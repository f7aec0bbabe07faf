"""The short form of `make fuzz`, and the check that its judge can fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from tests.conftest import MakeOnce
from tests.fuzz import damage, verdict
from tests.fuzz.__main__ import KINDS, run
from tests.fuzz.verdict import Case, judge

pytestmark = pytest.mark.jobs

SHORT = {"configs": 400, "profiles": 100, "tables": 300, "images": 200, "damage": 8}
"""Cases of each kind: half a minute together."""


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_mistyped_or_damaged_ends_in_anything_but_words_for_people(
    kind: str, tmp_path: Path, made_once: MakeOnce
) -> None:
    place = made_once("damaged", damage.trained) if kind == "damage" else tmp_path
    assert not run(kind, range(SHORT[kind]), seed=0, place=place)


def _raise(error: Exception) -> None:
    raise error


def _work_for_ever() -> None:
    while True:
        pass


class Long(UserError):
    """A message that says what it is anew each time, and cuts nothing."""

    def __str__(self) -> str:
        return "a" * 2001


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (Case("x", lambda: _raise(KeyError("a"))), "KeyError"),
        (Case("x", lambda: _raise(Long())), "a message of 2001 characters"),
        (Case("x", lambda: _raise(UserError("it is wrong")), ("table.csv",)), "names none of table.csv"),
        (Case("x", lambda: time.sleep(5)), "no answer within 0.05 s"),
        (Case("x", _work_for_ever), "no answer within 0.05 s"),
        (Case("x", lambda: verdict.refused_or_done(verdict.Ended(3, "", "?"))), "exit status 3"),
    ],
)
def test_each_kind_of_failure_is_seen(case: Case, what: str) -> None:
    found = judge(case, seconds=0.05)
    assert found is not None and what in found.what


def test_a_refusal_in_words_that_names_the_place_is_no_failure() -> None:
    assert judge(Case("x", lambda: _raise(UserError("table.csv, line 3: empty")), ("table.csv",))) is None


def test_what_stands_in_a_cell_makes_no_message_long() -> None:
    cell, words = (
        UserError(f"labels.csv, line 3: {'a' * 10_000} is no number"),
        UserError(f"labels.csv, line 3: {'a b ' * 10_000} no"),
    )
    assert str(cell).startswith("labels.csv, line 3: aaa") and str(cell).endswith("… is no number") and len(str(cell)) < 400
    assert str(words).startswith("labels.csv, line 3: a b") and str(words).endswith(" no") and len(str(words)) <= 2000
