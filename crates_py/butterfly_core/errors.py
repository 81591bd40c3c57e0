"""The tree of errors that leave a crate: each branch says whose fault it is.

The message carries the story: what, where, what was seen, what to do next.
"""


class ButterflyError(Exception):
    """Root of all errors raised on purpose."""


# Yours: something a person wrote or asked for.


class UserError(ButterflyError):
    """The person who runs Butterfly can mend this."""


class InvalidValue(UserError, ValueError):
    """A value has the wrong form."""


class ConfigError(UserError):
    """A configuration file, environment variable or flag is wrong."""


class ModelError(UserError):
    """A checkpoint is missing, malformed, or of a kind that is not supported."""


class DoesNotFit(UserError):
    """No partition of the model fits the machines at hand."""


class RequestError(UserError):
    """A request asks for something impossible; OpenAI's ``invalid_request_error``."""


# The peer's: another node said something it must not say.


class PeerError(ButterflyError):
    """Another node broke the protocol or could not be trusted."""


class ProtocolViolation(PeerError):
    """Bytes from a peer do not follow the protocol."""


class NotAuthenticated(PeerError):
    """A peer does not hold the cluster secret, or is not who it says."""


class Refused(PeerError):
    """A peer understood a request and declined it; the message says why."""


# The world's: disks, networks, time.


class WorldError(ButterflyError):
    """Something outside failed; trying again may help."""


class Unreachable(WorldError):
    """A peer or server could not be reached in time."""


class SourceError(WorldError):
    """The model source (bucket, folder) did not deliver."""


class VerificationFailed(WorldError):
    """Bytes do not match what they must be; names node, file, tensor and digests."""


class StorageError(WorldError):
    """A local disk failed, is full or is damaged."""


class EngineLost(WorldError):
    """The engine process died or does not answer."""


class NotServing(WorldError):
    """The cluster cannot answer now; ``retry_after_seconds`` says when to ask again."""

    def __init__(self, message: str, *, phase: str, retry_after_seconds: int = 2) -> None:
        super().__init__(message)
        self.phase = phase
        self.retry_after_seconds = retry_after_seconds


# Ours: a state that cannot be.


class IllegalTransition(ButterflyError):
    """An event arrived in a state that cannot take it."""
