"""Whether a file that the configuration names can be opened; its content is never read."""

from pathlib import Path


def cannot_open(path: Path, make: str = "for instance with: openssl rand -hex 32") -> str | None:
    """Why a file cannot be read, told without reading it; ``make`` is how to get one."""
    try:
        with path.open("rb"):
            return "is empty" if path.stat().st_size == 0 else None
    except IsADirectoryError:
        return "is a folder, not a file"
    except FileNotFoundError:
        return f"does not exist; make it, {make}"
    except ValueError as error:  # a zero byte in the name
        return f"is no name of a file: {error}"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
