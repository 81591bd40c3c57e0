import pytest

from butterfly_cluster.lifecycle import TRANSITIONS, NodeState
from tools.draw_lifecycle import BEGIN, DOCUMENT, END, draw, events, with_block


def test_the_document_shows_the_life_of_a_node_as_the_code_has_it() -> None:
    text = DOCUMENT.read_text()

    assert text == with_block(text, draw()), "run: python tools/draw_lifecycle.py --write"


def test_every_state_and_every_transition_is_drawn() -> None:
    drawn = draw()

    for state in NodeState:
        assert f"**{state.value}**" in drawn
    for state, row in TRANSITIONS.items():
        for event, target in row.items():
            arrows = [
                line
                for line in drawn.splitlines()
                if line.strip().startswith(f"{state.value} --> {target.value}: ")
            ]
            assert any(event.__name__ in arrow for arrow in arrows), (state, event)


def test_every_event_is_explained_and_causes_something() -> None:
    meanings = draw().split("\n\n")[-1].splitlines()[2:]

    assert len(meanings) == len(events())
    for line in meanings:
        _, _, happened, effects, _ = (cell.strip() for cell in line.split("|"))
        assert happened.endswith(".")
        assert effects


def test_a_block_is_put_between_the_marks_and_nothing_else_changes() -> None:
    assert with_block(f"a\n{BEGIN}\nold\n{END}\nz\n", "new\n") == f"a\n{BEGIN}\n\nnew\n\n{END}\nz\n"
    with pytest.raises(ValueError, match="lacks the marks"):
        with_block("a document without marks", "new")
