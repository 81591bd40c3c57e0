"""The text in a streamed chat answer."""

import json

import pytest

from butterfly.admin.ask import text_pieces
from butterfly_core.errors import ProtocolViolation, Refused


def chunk(**delta: str) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}"


def test_pieces_come_in_order_and_role_comments_and_blank_lines_are_no_text() -> None:
    lines = [chunk(role="assistant"), "", ": ping", chunk(content="A "), chunk(content="list")]
    usage = f"data: {json.dumps({'choices': [], 'usage': {}})}"

    assert list(text_pieces([*lines, usage, "data: [DONE]", chunk(content="late")])) == [
        "A ",
        "list",
    ]


def test_an_error_in_mid_stream_is_told() -> None:
    with pytest.raises(Refused, match="engine died"):
        list(text_pieces(['data: {"error": {"message": "engine died"}}']))


def test_an_answer_without_its_end_is_told() -> None:
    with pytest.raises(ProtocolViolation, match="broke off"):
        list(text_pieces([chunk(content="A")]))


@pytest.mark.parametrize("data", ["{", "[]", "7", '{"choices": [{}]}', '{"choices": 7}'])
def test_what_is_no_chunk_is_refused(data: str) -> None:
    with pytest.raises(ProtocolViolation, match="no chunk"):
        list(text_pieces([f"data: {data}"]))
