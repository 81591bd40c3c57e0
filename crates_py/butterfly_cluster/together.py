"""Several files replaced together, all or none, whatever moment the power goes.

All new contents are first written to one file (the intent). Once that one is there, they will
be in place: whoever opens the directory next finishes what was begun.
"""

import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import msgpack

from butterfly_cluster.durable_files import read_if_there, sync_directory, write_durably
from butterfly_core.errors import StorageError

INTENT_NAME = "replacing"
_MAGIC = b"BFLYR001"
_CHECKSUM = struct.Struct("<I")


def replace_together(directory: Path, files: Mapping[str, bytes]) -> None:
    """Give each named file its new content. Raises StorageError."""
    body: bytes = msgpack.packb(dict(files))
    intent = _MAGIC + _CHECKSUM.pack(zlib.crc32(body)) + body
    write_durably(directory / INTENT_NAME, intent)
    finish_replacing(directory)


def finish_replacing(directory: Path) -> bool:
    """Finish what an earlier process began; True when there was something. Raises StorageError."""
    path = directory / INTENT_NAME
    data = read_if_there(path)
    if data is None:
        return False
    start = len(_MAGIC) + _CHECKSUM.size
    body = data[start:]
    if len(data) < start or data[:start] != _MAGIC + _CHECKSUM.pack(zlib.crc32(body)):
        raise StorageError(
            f"{path} is damaged: its checksum does not match. Move it away to keep the files as "
            "they are, and do again what was interrupted"
        )
    for name, content in msgpack.unpackb(body).items():
        write_durably(directory / name, content)
    try:
        os.unlink(path)
        sync_directory(directory)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror or error}") from error
    return True
