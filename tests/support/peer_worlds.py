"""Loaders that are each other's peers over real data links on socket pairs, without nodes."""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from butterfly.engine_host.peer_links import AskedLink, data_link_of
from butterfly.engine_host.peer_protocol import Have, pack_given, pack_holdings, parse_request
from butterfly.engine_host.uploads import Uploads
from butterfly.peer_messages import PeerLink as Handed
from butterfly_core.errors import Unreachable
from butterfly_weights.cache import TensorCache
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import Loader, LoadResult
from butterfly_weights.loader_options import LoaderOptions
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import Answer, PeerLink, PeerOptions, Shelf, WantedLeaf
from butterfly_weights.source import Source, open_source
from butterfly_wire.datalink import DataLink

KEY = bytes(32)
ANSWER_SECONDS = 2.0
PATIENCE_SECONDS = 3.0


def link_pair(asker: str, asked: str) -> tuple[DataLink, DataLink]:
    """Both ends of a link over which ``asker`` asks ``asked``."""
    out, into = socket.socketpair()
    return (
        data_link_of(Handed(asked, "out", KEY, KEY, "aead"), out, answer_seconds=ANSWER_SECONDS),
        data_link_of(Handed(asker, "in", KEY, KEY, "aead"), into),
    )


Answering = Callable[[str, DataLink], None]
"""Takes the end of a link at the asked one, and answers on threads of its own."""


def answering_with(
    leaf: Callable[[WantedLeaf], bytes | None], holding: Callable[[bytes], Holding]
) -> Answering:
    """Gives the first leaf asked for, as ``leaf`` has it; None says nothing more, and a
    ConnectionError closes the link."""

    def answer(link: DataLink) -> None:
        request = parse_request(link.receive()[0], 0)
        if isinstance(request, Have):
            link.send(pack_holdings([holding(tensor) for tensor in request.tensors]))
            return
        data = leaf(request.wanted[0])
        if data is None:
            link.receive()  # nothing comes: the other side waits for its answer
        else:
            link.send(pack_given(Answer.LEAF, 0), data)

    def run(_: str, link: DataLink) -> None:
        def answer_all() -> None:
            with closing(link), suppress(Unreachable, ConnectionError):
                while True:
                    answer(link)

        threading.Thread(target=answer_all, daemon=True).start()

    return run


def always(answer: Answer, holding: Holding, *, times: int = 1 << 30) -> Answering:
    """Says the same so many times, and gives nothing."""

    def run(asker: str, link: DataLink) -> None:
        def answer_all() -> None:
            with closing(link), suppress(Unreachable):
                for _ in range(times):
                    request = parse_request(link.receive()[0], 0)
                    if isinstance(request, Have):
                        link.send(pack_holdings([holding] * len(request.tensors)))
                    else:
                        link.send(pack_given(answer))

        threading.Thread(target=answer_all, daemon=True).start()

    return run


@dataclass
class Town:
    """All who may be asked, by name."""

    answering: dict[str, Answering] = field(default_factory=dict)
    meeting: threading.Barrier | None = None
    """Where loads meet before they ask, or None: each begins when it likes."""


class Resident:
    """One node's share in the town: what it holds, gives and asks. A ``Peers``."""

    def __init__(
        self,
        town: Town,
        name: str,
        *,
        bytes_per_second: int = 0,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._town, self._name = town, name
        self.options = PeerOptions(patience_seconds=patience_seconds)
        self.shelf = Shelf()
        self.uploads = Uploads(self.shelf, bytes_per_second)
        town.answering[name] = self.uploads.serve

    @property
    def me(self) -> str:
        return self._name

    def open_links(self, timeout_seconds: float) -> Sequence[PeerLink]:
        if self._town.meeting is not None:
            self._town.meeting.wait(timeout_seconds + 60)
        links = []
        for name, answer in sorted(self._town.answering.items()):
            if name != self._name:
                mine, theirs = link_pair(self._name, name)
                answer(self._name, theirs)
                links.append(AskedLink(name, mine))
        return links

    def load(
        self,
        source: Source,
        parts: Sequence[str],
        *,
        cache: TensorCache | None = None,
        options: LoaderOptions | None = None,
    ) -> LoadResult:
        self.shelf.use_cache(cache)
        loader = Loader(source, read_checkpoint(source), cache=cache, peers=self, options=options)
        return loader.load(parts)

    def close(self) -> None:
        self.uploads.close()


@dataclass
class Outcome:
    """How one load of several ended."""

    name: str
    result: LoadResult | None = None
    error: BaseException | None = None


def load_together(
    residents: Sequence[Resident], open_one: Callable[[], Source], parts: Sequence[str]
) -> list[Outcome]:
    """All load at once, each from a source of its own, until the last has ended."""
    outcomes = [Outcome(resident.me) for resident in residents]

    def run(resident: Resident, outcome: Outcome) -> None:
        source = open_one()
        try:
            outcome.result = resident.load(source, parts)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.error = error
        finally:
            source.close()

    threads = [
        threading.Thread(target=run, args=pair) for pair in zip(residents, outcomes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def bucket(url: str, place: str) -> Callable[[], Source]:
    return lambda: open_source("s3", place, endpoint_url=url)


def folder_source(folder: Path) -> Callable[[], Source]:
    return lambda: open_source("filesystem", str(folder))
