"""Memory and walltime as Slurm writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.amounts import format_memory, format_time, parse_memory, parse_time, scale_memory, scale_time
from pipeline.signals import warning_seconds


@pytest.mark.parametrize(
    ("text", "mebibytes", "written"),
    [
        ("32G", 32768, "32G"),
        ("32gb", 32768, "32G"),
        ("4000", 4000, "4000M"),
        ("1.5G", 1536, "1536M"),
        ("512K", 1, "1M"),
        ("2T", 2 * 1024**2, "2048G"),
        ("0", 0, "0"),
    ],
)
def test_memory_is_read_and_written_as_slurm_does(text: str, mebibytes: int, written: str) -> None:
    assert parse_memory(text) == mebibytes and format_memory(mebibytes) == written


@pytest.mark.parametrize(
    ("text", "seconds", "written"),
    [
        ("90", 5400, "01:30:00"),
        ("90:30", 5430, "01:30:30"),
        ("4:00:00", 14400, "04:00:00"),
        ("2-12", 216000, "2-12:00:00"),
        ("1-00:30", 88200, "1-00:30:00"),
        ("1-00:00:01", 86401, "1-00:00:01"),
    ],
)
def test_walltimes_are_read_and_written_as_slurm_does(text: str, seconds: int, written: str) -> None:
    assert parse_time(text) == seconds and format_time(seconds) == written


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-5", "1h", "2x", "1-", "00:00:00", "5\n6"])
def test_what_is_no_walltime_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no walltime"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "much", "-5G", "5 G", "5P", "2x", "1e3", "9" * 400])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse_memory(text)


@given(st.integers(1, 10**7))
def test_written_amounts_are_read_again(n: int) -> None:
    assert parse_time(format_time(n)) == n and parse_memory(format_memory(n)) == n


@pytest.mark.parametrize(
    ("text", "change", "wanted"), [("4G", "2x", "8G"), ("4G", "1.5x", "6G"), ("4G", "64G", "64G"), ("0", "2x", "0")]
)
def test_memory_is_changed_by_a_factor_or_to_an_amount(text: str, change: str, wanted: str) -> None:
    assert scale_memory(text, change) == wanted


def test_a_walltime_is_changed_by_a_factor_or_to_an_amount() -> None:
    assert scale_time("04:00:00", "2x") == "08:00:00" and scale_time("04:00:00", "1-0") == "1-00:00:00"
    for wrong in ("x", "0x", "-2x", "twice"):
        with pytest.raises(ValueError, match=r"no factor|no walltime"):
            scale_time("04:00:00", wrong)


@given(st.integers(60, 10**6))
def test_a_warning_comes_when_most_of_the_walltime_is_over(walltime: int) -> None:
    """A rule of min(0.8·T, T − 10 min) is negative for short jobs, which are then taken for timed-out ones."""
    warning = warning_seconds(walltime)
    assert 10 <= warning <= 120 and walltime - warning >= 0.8 * walltime
