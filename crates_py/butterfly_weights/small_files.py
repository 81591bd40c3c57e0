"""A model's small files and its manifest, from a source that may not allow listing them."""

from butterfly_core.errors import ModelError
from butterfly_weights.errors import AccessDenied, BytesMismatch, NotFound
from butterfly_weights.manifest import (
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    Manifest,
    parse_manifest,
)
from butterfly_weights.merkle import file_digest
from butterfly_weights.source import Source

CONFIG_NAME = "config.json"
SMALL_FILES = {
    CONFIG_NAME: 4 << 20,
    "generation_config.json": 1 << 20,
    "tokenizer.json": 128 << 20,
    "tokenizer_config.json": 16 << 20,
    "tokenizer.model": 64 << 20,
    "special_tokens_map.json": 4 << 20,
    "added_tokens.json": 16 << 20,
    "vocab.json": 64 << 20,
    "merges.txt": 64 << 20,
    "chat_template.jinja": 4 << 20,
    "chat_template.json": 4 << 20,
}
"""Names that are read, and the bytes allowed for each."""
_FETCHES_MAX = 4


class Folder:
    """The small files of a source. ``listed``: its objects, None where it does not allow listing;
    then a file is there when it can be read."""

    def __init__(self, source: Source) -> None:
        self._source, self.listed = source, source.entries()
        self._read: dict[str, bytes | None] = {}

    def has(self, name: str) -> bool:
        if self.listed is not None:
            return name in self.listed
        if name in SMALL_FILES:
            return self.read(name, SMALL_FILES[name]) is not None
        try:
            return self._source.exists(name)
        except AccessDenied:
            return False

    def read(self, name: str, bytes_max: int, *, anew: bool = False) -> bytes | None:
        """None when there is no such file. It is fetched once, unless it is wanted ``anew``."""
        if anew or name not in self._read:
            self._read[name] = self._fetch(name, bytes_max)
        return self._read[name]

    def _fetch(self, name: str, bytes_max: int) -> bytes | None:
        if self.listed is not None and name not in self.listed:
            return None
        try:
            return self._source.read_small(name, bytes_max=bytes_max)
        except (NotFound, AccessDenied) as error:
            # Who may not list a bucket is told 403 for an object that is missing, too.
            is_absent = isinstance(error, NotFound) or name != CONFIG_NAME
            if self.listed is None and is_absent:
                return None
            raise


def read_manifest(folder: Folder) -> Manifest | None:
    """None when there is none. Raises ModelError, SourceError."""
    for fetch in range(1, _FETCHES_MAX + 1):
        content = folder.read(MANIFEST_NAME, MANIFEST_BYTES_MAX, anew=True)
        if content is None:
            return None
        try:
            return parse_manifest(content)
        except ModelError:
            # It proves itself, so a bit flipped on the way shows here and is worth another try.
            if fetch == _FETCHES_MAX:
                raise
    raise AssertionError("unreachable")


def read_small_files(folder: Folder, manifest: Manifest | None) -> dict[str, bytes]:
    """Those that are there, by name, proven by the manifest if there is one.

    Raises ModelError, SourceError, VerificationFailed (BytesMismatch).
    """
    found = {name: folder.read(name, bytes_max) for name, bytes_max in SMALL_FILES.items()}
    present = {name: content for name, content in found.items() if content is not None}
    if manifest is None:
        return present
    if present.keys() != manifest.files.keys():
        odd = sorted(present.keys() ^ manifest.files.keys())
        raise ModelError(
            f"{MANIFEST_NAME} and the folder differ in {', '.join(odd)}: restore the files, or "
            "make the manifest again"
        )
    return {name: _proven(folder, name, manifest.files[name]) for name in present}


def _proven(folder: Folder, name: str, expected: bytes) -> bytes:
    seen = content = b""
    for fetch in range(_FETCHES_MAX):
        content = folder.read(name, SMALL_FILES[name], anew=fetch > 0) or b""
        seen = file_digest(name, content)
        if seen == expected:
            return content
    raise BytesMismatch(
        object_name=name,
        tensor="",
        start=0,
        stop=len(content),
        expected=expected.hex(),
        seen=seen.hex(),
        fetches=_FETCHES_MAX,
    )
