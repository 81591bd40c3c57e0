"""Bytes and seconds for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.admin.units import bytes_text, duration_text, parse_bytes, parse_duration
from butterfly_core.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "count"),
    [("4096", 4096), ("24GiB", 24 << 30), ("1.5 TB", 1_500_000_000_000), (" 512 mib ", 512 << 20)],
)
def test_amounts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "24 GoB", "1e3", "nan"])
def test_what_is_no_amount_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidValue, match="24GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30min", 1800), ("1.5 h", 5400), ("7d", 604800), ("2 w", 1209600), ("0s", 0)],
)
def test_lengths_of_time_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "7 years", "nan"])
def test_what_is_no_length_of_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidValue, match="12h"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=2**49))
def test_what_is_shown_reads_back_within_a_percent(count: int) -> None:
    assert parse_bytes(bytes_text(count)) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (273600, "3 d 4 h"),
        (float("inf"), "-"),
    ],
)
def test_durations_have_at_most_two_parts(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
