from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.errors import RequestError
from butterfly_text.stop_strings import STOP_STRING_CHARACTERS_MAX, STOP_STRINGS_MAX, StopStrings

FEW_LETTERS = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def show(stops: list[str], pieces: list[str]) -> str:
    filtered = StopStrings(stops)
    return "".join([*(filtered.push(piece) for piece in pieces), filtered.flush()])


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def shown_by_definition(stops: list[str], text: str) -> str:
    """The shortest beginning that ends in a stop string, without the longest such."""
    for end in range(1, len(text) + 1):
        if ends := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ends))]
    return text


@given(STOPS, FEW_LETTERS, st.lists(st.integers(0, 100), max_size=6))
def test_a_cut_anywhere_shows_the_same(stops: list[str], text: str, places: list[int]) -> None:
    assert show(stops, cut(text, places)) == shown_by_definition(stops, text)


@given(STOPS, FEW_LETTERS)
def test_nothing_shown_is_part_of_a_stop_string(stops: list[str], text: str) -> None:
    filtered = StopStrings(stops)
    shown = ""
    for letter in text:
        shown += filtered.push(letter)
        assert shown_by_definition(stops, text).startswith(shown)


def test_text_that_may_begin_a_stop_string_waits_until_it_cannot() -> None:
    stops = StopStrings(["<end>"])

    assert stops.push("a <en") == "a "
    assert stops.push("emy") == "<enemy"
    assert stops.push("<en") == ""
    assert stops.push("d> b") == ""
    assert stops.stopped
    assert stops.matched == "<end>"
    assert stops.push("more") == stops.flush() == ""


def test_what_waited_comes_out_when_the_answer_ends_without_the_stop_string() -> None:
    stops = StopStrings(["STOP"])

    assert stops.push("full ST") == "full "
    assert stops.flush() == "ST"
    assert not stops.stopped


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopStrings([]).push("anything") == "anything"


@pytest.mark.parametrize(
    "stops",
    [[""], ["x"] * (STOP_STRINGS_MAX + 1), ["x" * (STOP_STRING_CHARACTERS_MAX + 1)]],
)
def test_a_stop_string_that_is_empty_or_too_much_is_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError, match="allowed"):
        StopStrings(stops)
