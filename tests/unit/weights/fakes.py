"""A model source in memory, for tests that need no disk and no socket."""

from collections.abc import Mapping, Sequence
from typing import Final

from butterfly_core.errors import ModelError
from butterfly_weights.errors import NotFound
from butterfly_weights.merkle import leaf_digest
from butterfly_weights.source import ObjectInfo, OnBytes


class MemorySource:
    """Objects in a dict; counts the bytes that were read as ranges."""

    etag_names_content: Final = True
    readers_wanted: Final = 8

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self.objects = dict(objects)
        self.range_bytes = 0

    def describe(self) -> str:
        return "memory"

    def entries(self) -> Mapping[str, ObjectInfo]:
        return {name: self.stat(name) for name in self.objects}

    def stat(self, name: str) -> ObjectInfo:
        if name not in self.objects:
            raise NotFound(name)
        content = self.objects[name]
        return ObjectInfo(name, len(content), leaf_digest(content).hex())

    def exists(self, name: str) -> bool:
        return name in self.objects

    def read_small(self, name: str, *, bytes_max: int) -> bytes:
        if self.stat(name).size > bytes_max:
            raise ModelError(f"{name} is too large")
        return self.objects[name]

    def write_small(self, name: str, content: bytes) -> None:
        self.objects[name] = content

    def reader(self) -> "MemoryReader":
        return MemoryReader(self)

    def close(self) -> None:
        """Nothing to do."""


class MemoryReader:
    """Reads a MemorySource, three bytes short of half a view at a time."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source

    def read_into(
        self, info: ObjectInfo, offset: int, views: Sequence[memoryview], on_bytes: OnBytes
    ) -> None:
        for view in views:
            view[:] = self._source.objects[info.name][offset : offset + view.nbytes]
            offset += view.nbytes
            self._source.range_bytes += view.nbytes
            on_bytes(view.nbytes // 3)
            on_bytes(view.nbytes - view.nbytes // 3)

    def reset(self) -> None:
        """Nothing to do."""

    def interrupt(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
