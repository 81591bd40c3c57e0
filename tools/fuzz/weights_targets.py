"""What reads a model's source: headers, index, config, manifest, a hub's answers, HTTP itself."""

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from butterfly_core.errors import ConfigError, ModelError, SourceError
from butterfly_weights.addresses import HubName, parse_hub_name, plain_url
from butterfly_weights.bearer import BearerSigner, Token
from butterfly_weights.checkpoint import Checkpoint, parse_index
from butterfly_weights.errors import TransientFailure
from butterfly_weights.http_answers import read_refusal
from butterfly_weights.http_connection import BROKEN, StreamedResponse
from butterfly_weights.http_reader import HttpReader
from butterfly_weights.hub_answers import error_of_hub, parse_model
from butterfly_weights.manifest import encode_manifest, entry_of, make_manifest, parse_manifest
from butterfly_weights.merkle import leaf_digest
from butterfly_weights.redirects import Landings, RedirectingConnection, next_url, origin_of
from butterfly_weights.retrying import Pace
from butterfly_weights.safetensors_header import (
    LENGTH_BYTES,
    header_length,
    parse_header,
    parse_json_object,
)
from butterfly_weights.source import ObjectInfo, SourceOptions
from butterfly_weights.spec import model_spec
from butterfly_weights.tensors import TensorInfo
from tools.fuzz.target import Target

_SHARD: Final = "model.safetensors"
_HOME: Final = "https://home.example"
_BETWEEN: Final = b"\xff\xff"
_COMMIT: Final = "0123456789abcdef" * 2 + "01234567"
_DATA_BYTES: Final = 32


def _header(data: bytes) -> None:
    """As a whole file, and as the header of one with 32 bytes of tensors; one must be sound."""
    _any_of(
        ModelError,
        lambda: _sound(data[LENGTH_BYTES:], len(data), header_length(data, _SHARD, len(data))),
        lambda: _sound(data, LENGTH_BYTES + len(data) + _DATA_BYTES, len(data)),
    )


def _sound(rest: bytes, shard_bytes: int, length: int) -> None:
    position = LENGTH_BYTES + length
    for tensor in parse_header(rest[:length], _SHARD, shard_bytes):
        if tensor.offset != position or tensor.nbytes < 0:
            raise AssertionError(f"{tensor} does not begin at {position}")
        position += tensor.nbytes
    if position != shard_bytes:
        raise AssertionError("bytes that belong to no tensor")


def _any_of(kind: type[Exception], *reads: Callable[[], object]) -> None:
    """All are tried; the last error is raised when none accepts."""
    failures: list[Exception] = []
    for read in reads:
        try:
            read()
        except kind as error:
            failures.append(error)
    if len(failures) == len(reads):
        raise failures[-1]


def _index(data: bytes) -> None:
    for shard in parse_index(data).values():
        if shard.startswith("/") or ".." in shard.split("/"):
            raise AssertionError(f"{shard!r} leads out of the folder")


def _config(data: bytes) -> None:
    names = ("model.embed_tokens.weight", "model.layers.0.w", "lm_head.weight")
    tensors = tuple(TensorInfo(name, "BF16", (4,), 8, _SHARD, 0) for name in names)
    config = parse_json_object(data, "config.json")
    model_spec(Checkpoint(config, {}, tensors, {}, None, "r", "k"), "m")


def _manifest(data: bytes) -> None:
    """What was read is written and read again to the same."""
    found = parse_manifest(data)
    if parse_manifest(encode_manifest(found)) != found:
        raise AssertionError("a manifest changes when it is written")


def _hub(data: bytes) -> None:
    for name in parse_model(data, "the answer").files:
        if name.startswith("/") or ".." in name.split("/"):
            raise AssertionError(f"{name!r} leads out of the folder")


def _address(data: bytes) -> None:
    """Names, addresses and places to be sent on to, from one text."""
    text = data.decode("latin-1")
    _any_of(
        ConfigError,
        lambda: parse_hub_name(text),
        lambda: plain_url(text, "source_path"),
        lambda: _followed(text),
    )


def _followed(location: str) -> None:
    try:
        there = next_url(f"{_HOME}/a/b", location)
    except SourceError as error:
        raise ConfigError(str(error)) from None
    if urlsplit(there).scheme != "https" or urlsplit(there).username is not None:
        raise AssertionError(f"{there!r} was followed")


class _Bytes:
    """What ``http.client`` takes for a socket."""

    def __init__(self, data: bytes) -> None:
        self._stream: Any = io.BytesIO(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._stream)

    def recv_into(self, view: memoryview, _count: int) -> int:
        return int(self._stream.readinto(view))


class _Scripted:
    """A connection whose answers are given."""

    def __init__(self, origin: str, answers: list[bytes]) -> None:
        self._origin, self._answers = origin, answers

    def get(self, method: str, url: str, headers: Mapping[str, str]) -> StreamedResponse:
        if origin_of(urlsplit(url)) != self._origin:
            raise AssertionError(f"{url!r} is asked for at {self._origin}")
        at_home = self._origin == origin_of(urlsplit(_HOME))
        if ("Authorization" in headers) is not at_home:
            raise AssertionError(f"the token was shown to {self._origin}")
        if any(c in "\r\n" for value in headers.values() for c in value):
            raise AssertionError(f"a field holds another: {headers!r}")
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        pretended: Any = _Bytes(answer)
        response = StreamedResponse(pretended, method=method)
        try:
            response.begin()
        except BROKEN as error:
            raise TransientFailure(str(error)) from error
        return response

    def drop(self) -> None:
        """Nothing is open."""

    def interrupt(self) -> None:
        """Nothing blocks."""


class _Redirected(RedirectingConnection):
    def __init__(self, answers: list[bytes]) -> None:
        super().__init__(_HOME, _Folder.options, Landings())
        self._answers = answers

    def _to(self, origin: str) -> Any:
        return _Scripted(origin, self._answers)


class _Folder:
    base_url = _HOME
    options = SourceOptions(tries_max=2, backoff_first_seconds=0.0)
    pace = Pace(1)
    signer = BearerSigner(_HOME, Token("averysecrettoken", "X"))

    def url(self, name: str) -> str:
        return f"{_HOME}/{name}"


def _http(data: bytes) -> None:
    """Answers, two 0xff bytes between them, to a range, a HEAD and a whole object."""
    info = ObjectInfo(_SHARD, 40, "abc")

    def reader() -> HttpReader:
        return HttpReader(_Folder(), _Redirected(data.split(_BETWEEN)))

    def read_range() -> None:
        view, landed = memoryview(bytearray(20)), [0]

        def on_bytes(count: int) -> None:
            landed[0] += count

        reader().read_into(info, 10, [view], on_bytes)
        if landed[0] != 20:
            raise AssertionError(f"{landed[0]} bytes of 20")

    def read_whole() -> None:
        if len(reader().read_whole("config.json", bytes_max=1 << 16)) > 1 << 16:
            raise AssertionError("more than was allowed")

    _any_of(
        SourceError,
        read_range,
        lambda: reader().stat(_SHARD),
        lambda: _as_source_error(read_whole),
    )


def _as_source_error(read: Callable[[], None]) -> None:
    try:
        read()
    except ModelError as error:  # larger than allowed
        raise SourceError(str(error)) from None


def _refusals(data: bytes) -> None:
    """The body of an error, and a hub's fields for it; every one means an error to raise."""
    text = data.decode("latin-1")
    for status in (401, 403, 404, 429, 500):
        refusal = read_refusal(status, {"x-error-code": text, "x-error-message": text}, data)
        error = error_of_hub(
            refusal, "x", name=HubName("o/n"), endpoint=_HOME, who="me", has_token=False
        )
        if len(str(error)) > 2 * len(text) + 1000:
            raise AssertionError("a story longer than its reason")


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _entry(start: int, stop: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": [(stop - start) // 4], "data_offsets": [start, stop]}


_HEADER = _json({"__metadata__": {"format": "pt"}, "a": _entry(0, 16), "b": _entry(16, 32)})
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 4,
    "num_attention_heads": 2,
    "vocab_size": 9,
    "max_position_embeddings": 8,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "text_config": {"head_dim": 2},
}
_TENSOR = TensorInfo("model.layers.0.w", "BF16", (4,), 8, _SHARD, 99)
_MANIFEST = make_manifest(1, {"config.json": b"{}"}, [entry_of(_TENSOR, [leaf_digest(bytes(8))])])
_HUB = {"id": "o/n", "sha": _COMMIT, "siblings": [{"rfilename": "config.json"}], "gated": False}
_RANGE = (
    b'HTTP/1.1 206 OK\r\nETag: "abc"\r\nContent-Range: bytes 10-29/40\r\nContent-Length: 20\r\n\r\n'
    + bytes(20)
)
_WHOLE = b'HTTP/1.1 200 OK\r\nETag: W/"abc"\r\nContent-Length: 5\r\n\r\nhello'
_SENT_ON = (
    b"HTTP/1.1 302 Found\r\nLocation: https://store.example/x?sig=1\r\nContent-Length: 0\r\n"
    b'X-Linked-Etag: "abc"\r\nX-Linked-Size: 40\r\n\r\n'
)

WEIGHTS_TARGETS: Final[Mapping[str, Target]] = {
    "safetensors": Target(
        _header,
        (ModelError,),
        (_HEADER, len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(_DATA_BYTES)),
    ),
    "index": Target(
        _index, (ModelError,), (_json({"metadata": {}, "weight_map": {"a": "b.safetensors"}}),)
    ),
    "config": Target(_config, (ModelError,), (_json(_CONFIG),)),
    "manifest": Target(_manifest, (ModelError,), (encode_manifest(_MANIFEST),)),
    "hub": Target(_hub, (SourceError,), (_json(_HUB),)),
    "address": Target(
        _address,
        (ConfigError,),
        (b"org/name@main", b"https://h.example/m", b"../x?y=1", b"//other.example/x"),
    ),
    "http": Target(_http, (SourceError,), (_RANGE, _WHOLE, _SENT_ON + _BETWEEN + _RANGE)),
    "refusals": Target(_refusals, (), (b"<Error><Code>SlowDown</Code></Error>", b"GatedRepo")),
}
