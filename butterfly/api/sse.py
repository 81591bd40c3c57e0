"""Server-sent events: how a stream of JSON objects looks on the wire.

Source: the WHATWG HTML standard, "Server-sent events"; OpenAI ends a stream with ``[DONE]``.
"""

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # a proxy in between must not wait for more
}


def event(payload: bytes) -> bytes:
    """One event. The payload may hold line ends; each line becomes one ``data:`` line."""
    lines = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
