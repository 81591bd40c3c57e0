"""The limits of the HTTP face: sizes, counts and times."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Every bound a client can run into, with defaults for a server of one model."""

    body_bytes_max: int = 4 * 1024 * 1024
    connections_max: int = 1024
    requests_in_flight_max: int = 256
    """Requests for an answer; status, metrics and checks are always let in."""
    choices_max: int = 64
    """Sequences of one request: prompts times n."""
    messages_max: int = 4096
    stop_strings_max: int = 4
    stop_string_characters_max: int = 512
    context_tokens_max: int | None = None
    """Prompt and answer together, where the cluster holds less than the model could."""
    header_timeout_seconds: float = 10.0
    """From the connection to the end of its first request's headers."""
    body_timeout_seconds: float = 30.0
    idle_timeout_seconds: float = 75.0
    """A connection without a request is closed after this."""
    write_timeout_seconds: float = 30.0
    """A client that does not read for so long is dropped."""
    answer_timeout_seconds: float = 3600.0
    keep_alive_seconds: float = 15.0
    """Between two comments on a stream that has nothing to say yet."""
    pieces_buffered_max: int = 256
    """Pieces of text of one request that wait for a slow client."""
