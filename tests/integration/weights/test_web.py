"""A model's folder on a web server: versions of every kind, redirects, tokens, ways out."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.errors import SourceError
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.errors import AccessDenied, NotFound, SourceChanged
from butterfly_weights.loader import Loader
from butterfly_weights.source import Source, SourceOptions, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import (
    PLACE,
    Answer,
    Asked,
    Change,
    FaultServer,
    cut,
    fault_server,
    refuse,
    without_ranges,
)

LAYERS = 4
TOKEN = "averysecrettoken"
SHARD = "model-00002-of-00003.safetensors"
QUICK = SourceOptions(
    tries_max=3,
    backoff_first_seconds=0.001,
    backoff_max_seconds=0.005,
    stall_timeout_seconds=0.5,
)


@pytest.fixture
def opened() -> Iterator[list[Source]]:
    sources: list[Source] = []
    yield sources
    for source in sources:
        source.close()


def at(url: str, opened: list[Source], options: SourceOptions = QUICK) -> Source:
    opened.append(open_source("http", f"{url}/{PLACE}/", options=options))
    return opened[-1]


def contents(source: Source) -> dict[str, bytes]:
    result = Loader(source, read_checkpoint(source)).load(all_parts(LAYERS))
    return {name: bytes(tensor.data) for name, tensor in result.tensors.items()}


def of_folder(folder: Path) -> dict[str, bytes]:
    return contents(open_source("filesystem", str(folder)))


def version(kind: str) -> Change:
    """Answers that tell an object's version in another way."""

    def dress(answer: Answer, _asked: Asked, content: bytes) -> None:
        etag = answer.headers.pop("ETag", None)
        if etag is None:
            return
        if kind == "weak":
            answer.headers["ETag"] = f"W/{etag}"
        elif kind == "date":
            answer.headers["Last-Modified"] = f"Tue, 01 Jan 2030 00:00:{len(content) % 60:02} GMT"

    return dress


def send_on_to(url: str, status: int = 302) -> Change:
    """Every object lies at another server."""

    def dress(answer: Answer, asked: Asked, _content: bytes) -> None:
        answer.status, answer.body = status, b""
        answer.headers = {"Location": f"{url}/{PLACE}/{asked.name}?sig=s3cr3t"}
        answer.headers["Content-Length"] = "0"

    return dress


@pytest.mark.parametrize("kind", ["strong", "weak", "date"])
def test_a_model_is_read_whatever_tells_its_versions(
    server: FaultServer, folder: Path, opened: list[Source], kind: str
) -> None:
    server.dress = version(kind) if kind != "strong" else None

    assert contents(at(server.url, opened)) == of_folder(folder)

    ranges = [asked for asked in server.asked if asked.first is not None]
    assert all(("if-match" in asked.headers) is (kind == "strong") for asked in ranges)
    assert all(("if-unmodified-since" in asked.headers) is (kind == "date") for asked in ranges)


@pytest.mark.parametrize("kind", ["weak", "date"])
def test_a_change_under_a_load_is_seen_whatever_tells_it(
    server: FaultServer, opened: list[Source], tmp_path: Path, kind: str
) -> None:
    server.dress = version(kind)
    source = at(server.url, opened)
    checkpoint = read_checkpoint(source)
    write_checkpoint(tmp_path / "other", Shape(seed=2, hidden_size=96))
    server.objects[SHARD] = (tmp_path / "other" / SHARD).read_bytes()

    with pytest.raises(SourceChanged, match=SHARD):
        Loader(source, checkpoint).load(all_parts(LAYERS))


def test_a_server_that_tells_no_version_is_refused(
    server: FaultServer, opened: list[Source]
) -> None:
    server.dress = version("none")

    with pytest.raises(SourceError, match="neither ETag nor Last-Modified"):
        read_checkpoint(at(server.url, opened))


def test_a_server_without_ranges_is_refused_with_advice(
    server: FaultServer, opened: list[Source]
) -> None:
    fault = server.add(without_ranges, name=SHARD)

    with pytest.raises(SourceError, match=f"{SHARD}.*does not support ranges"):
        read_checkpoint(at(server.url, opened))
    assert fault.hits == 1


def test_a_token_goes_to_the_first_server_and_not_where_it_sends_on(
    server: FaultServer, folder: Path, opened: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUTTERFLY_HTTP_TOKEN", TOKEN)
    with fault_server(folder) as store:
        server.dress = send_on_to(store.url)

        assert contents(at(server.url, opened)) == of_folder(folder)

        assert all(a.headers["authorization"] == f"Bearer {TOKEN}" for a in server.asked)
        assert not [asked for asked in store.asked if "authorization" in asked.headers]
        ranges = [asked for asked in server.asked if asked.first is not None]
        assert len(ranges) <= 2 * 3 + 8  # known then, but readers that start together all ask


def test_a_token_is_not_sent_in_the_clear_beyond_this_machine(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, opened: list[Source]
) -> None:
    monkeypatch.setenv("BUTTERFLY_HTTP_TOKEN", TOKEN)
    source = at("http://models.invalid", opened, SourceOptions(proxy_url=server.url, tries_max=1))
    server.dress = refuse(401, "x")

    with pytest.raises(AccessDenied, match="token aver…en from BUTTERFLY_HTTP_TOKEN was not sent"):
        source.stat("config.json")

    assert not [asked for asked in server.asked if "authorization" in asked.headers]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (401, AccessDenied, "set BUTTERFLY_HTTP_TOKEN.*without a token"),
        (403, AccessDenied, "does not let this node read"),
        (404, NotFound, "source_path"),
        (410, NotFound, "gone"),
    ],
)
def test_a_refusal_is_told_with_what_to_do(
    server: FaultServer, opened: list[Source], status: int, kind: type[Exception], says: str
) -> None:
    server.dress = refuse(status, "x")

    with pytest.raises(kind, match=f"{SHARD}.*{status}.*{says}"):
        at(server.url, opened).stat(SHARD)
    assert len(server.asked) == 1


def test_redirects_in_a_circle_end(server: FaultServer, opened: list[Source]) -> None:
    server.dress = send_on_to(server.url)

    with pytest.raises(SourceError, match="sent on more than 5 times") as refused:
        at(server.url, opened).stat(SHARD)

    assert len(server.asked) == 6
    assert "s3cr3t" not in str(refused.value)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("ftp://127.0.0.1/x", "no http"),
        ("http://user:pass@127.0.0.1/x", "user name"),
        ("http://127.0.0.1:99999/x", "no http"),
        ("http://[::1", "Invalid IPv6"),
        ("", "no address"),
        ("http://:80/x", "names no host"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_refused(
    server: FaultServer, opened: list[Source], location: str, says: str
) -> None:
    def dress(answer: Answer, _asked: Asked, _content: bytes) -> None:
        answer.status, answer.body = 302, b""
        answer.headers = {"Location": location, "Content-Length": "0"}

    server.dress = dress

    with pytest.raises(SourceError, match=says):
        at(server.url, opened).stat(SHARD)


def test_a_store_that_breaks_is_tried_again_from_the_first_server(
    server: FaultServer, folder: Path, opened: list[Source]
) -> None:
    with fault_server(folder) as store:
        server.dress = send_on_to(store.url)
        source = at(server.url, opened)
        checkpoint = read_checkpoint(source)
        store.add(cut("close"), name=SHARD, times=1)
        store.add(refuse(503, "SlowDown"), name=SHARD, times=1)

        result = Loader(source, checkpoint).load(all_parts(LAYERS))

        assert {n: bytes(t.data) for n, t in result.tensors.items()} == of_folder(folder)


def test_a_proxy_of_the_environment_is_used(
    server: FaultServer, folder: Path, opened: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, server.url)

    assert contents(at("http://models.invalid", opened)) == of_folder(folder)


def test_nothing_is_written_to_a_web_server(server: FaultServer, opened: list[Source]) -> None:
    with pytest.raises(SourceError, match=r"can only be read.*--output"):
        at(server.url, opened).write_small("butterfly.manifest.json", b"{}")
