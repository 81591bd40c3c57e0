"""What can go wrong between a model source and memory, as types a caller can tell apart."""

from butterfly_core.errors import ButterflyError, SourceError, VerificationFailed, WorldError


class NotFound(SourceError):
    """The object or file is not there."""


class AccessDenied(SourceError):
    """The source understood the request and refuses it: permission, key or clock."""


class SourceChanged(SourceError):
    """An object is no longer the version that the checkpoint was read from."""

    def __init__(self, message: str, *, object_name: str) -> None:
        super().__init__(message)
        self.object_name = object_name


class TransientFailure(SourceError):
    """Trying again may help: broken connections, stalls, 5xx, 429."""

    def __init__(
        self, message: str, *, retry_after_seconds: float = 0.0, slow_down: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.slow_down = slow_down


class BytesMismatch(VerificationFailed):
    """Bytes are not those of the manifest. Offsets are in the object; digests are hex.

    ``tensor`` is empty for a small file.
    """

    def __init__(
        self,
        *,
        object_name: str,
        tensor: str,
        start: int,
        stop: int,
        expected: str,
        seen: str,
        fetches: int,
    ) -> None:
        what = f"tensor {tensor} in {object_name}" if tensor else object_name
        super().__init__(
            f"{what}, bytes {start}-{stop - 1}: expected digest {expected}, seen {seen} "
            f"({fetches} fetches). The object differs from the manifest: restore it, "
            "or make a new manifest if the change was meant"
        )
        self.object_name = object_name
        self.tensor = tensor
        self.start = start
        self.stop = stop
        self.expected = expected
        self.seen = seen


class LoadCancelled(ButterflyError):
    """The caller asked the load to stop."""


class NoMemory(WorldError):
    """The machine cannot give the memory that the weights need."""


_SHOWN_CHARACTERS_MAX = 120


def shown(value: object) -> str:
    """A value from outside for a message, cut off: it may be a name of thirty million letters."""
    text = repr(value[: 2 * _SHOWN_CHARACTERS_MAX] if isinstance(value, str) else value)
    if len(text) <= _SHOWN_CHARACTERS_MAX:
        return text
    return f"{text[:_SHOWN_CHARACTERS_MAX]}…"
