"""Streams one answer through the OpenAI API of a node: what ``up`` shows when all is ready."""

import json
from collections.abc import Iterable, Iterator

from butterfly.admin.node_http import NodeHttp
from butterfly_core.errors import ProtocolViolation, Refused

ANSWER_TOKENS_MAX = 120
ANSWER_SECONDS_MAX = 120.0


def ask(node: NodeHttp, model: str, question: str) -> Iterator[str]:
    """The answer's text in pieces, as they come.

    Raises Unreachable, NotAuthenticated, Refused (also for an error in mid-stream) and
    ProtocolViolation.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": ANSWER_TOKENS_MAX,
        "temperature": 0,
        "stream": True,
    }
    return text_pieces(node.stream("/v1/chat/completions", body))


def text_pieces(lines: Iterable[str]) -> Iterator[str]:
    """The text in the lines of a stream of server-sent events (OpenAI's chat chunks)."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        yield from _pieces_of(data)
    raise ProtocolViolation("the answer broke off before its end ([DONE])")


def _pieces_of(data: str) -> Iterator[str]:
    try:
        chunk = json.loads(data)
        if error := chunk.get("error"):
            raise Refused(f"the answer broke off: {error.get('message', error)}")
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                yield str(piece)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolViolation(f"{data[:80]!r} is no chunk of a chat answer") from error
