"""What the exit codes of ``butterfly-admin`` mean, and the error that asks for the second."""

from butterfly_core.errors import UserError

EXIT_OK = 0
"""Done, or nothing found wrong."""
EXIT_FAILED = 1
"""A check failed, a mismatch was found, a node did not answer."""
EXIT_USAGE = 2
"""The command line asks for something impossible."""
EXIT_INTERRUPTED = 130
"""Ctrl-C."""


class UsageError(UserError):
    """The command line asks for something impossible; ends with ``EXIT_USAGE``."""
