"""A model on the Hugging Face hub, or on a server that speaks like it.

A revision is turned into a commit once; all bytes are then read at that commit, so a branch that
moves changes nothing under a load, and every node can be told the same commit.
"""

import http.client
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote

from butterfly_core.errors import SourceError
from butterfly_weights.addresses import HubName, plain_url
from butterfly_weights.bearer import BearerSigner, Token, hub_token
from butterfly_weights.errors import NotFound, TransientFailure
from butterfly_weights.http_answers import ERROR_BODY_BYTES_MAX, Refusal, read_refusal
from butterfly_weights.http_connection import BROKEN, told
from butterfly_weights.http_reader import HttpReader, lower_headers
from butterfly_weights.http_source import HttpSource
from butterfly_weights.hub_answers import HubModel, error_of_hub, parse_model
from butterfly_weights.redirects import Landings, RedirectingConnection
from butterfly_weights.retrying import Pace, Tries
from butterfly_weights.source import ObjectInfo, SourceOptions, safe_name

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_ANSWER_BYTES_MAX = 32 << 20


class HubSigner(BearerSigner):
    """The hub's token, and what its refusals mean."""

    def __init__(self, endpoint: str, name: HubName, token: Token | None) -> None:
        super().__init__(endpoint, token)
        self._endpoint, self._name = endpoint, name

    def refused(self, refusal: Refusal, what: str) -> SourceError:
        return error_of_hub(
            refusal,
            what,
            name=self._name,
            endpoint=self._endpoint,
            who=self.who,
            has_token=self.has_token,
        )


class HubSource(HttpSource):
    """Files of one commit of one model."""

    etag_names_content: Final = True

    def __init__(self, name: HubName, *, endpoint_url: str | None, options: SourceOptions) -> None:
        endpoint = endpoint_url or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
        self.base_url = plain_url(endpoint, "endpoint_url (or HF_ENDPOINT)")
        self.options, self.pace = options, Pace.of(options)
        self.signer = HubSigner(self.base_url, name, hub_token())
        self._name, self._landings = name, Landings()
        self._known: HubModel | None = None
        self._asking = threading.Lock()
        super().__init__(self.reader())

    def describe(self) -> str:
        return f"{self._name} at {self.base_url}"

    def version(self) -> str:
        """The commit that the revision meant when it was first looked up."""
        return self._name.commit or self._model().commit

    def pinned_path(self) -> str:
        """A ``source_path`` that means this very commit, for every other reader."""
        return f"{self._name.repo}@{self.version()}"

    def url(self, name: str) -> str:
        file = quote(safe_name(name), safe="/~")
        return f"{self.base_url}/{self._name.repo}/resolve/{self.version()}/{file}"

    def entries(self) -> Mapping[str, ObjectInfo]:
        """The files of the commit; size and ETag are asked for when one is looked at."""
        return _Entries(self)

    def names(self) -> frozenset[str]:
        return self._model().files

    def stat(self, name: str) -> ObjectInfo:
        if name not in self.names():
            raise NotFound(f"{self.describe()} has no file {name}")
        info = super().stat(name)
        if not info.etag:
            raise SourceError(f"{self.url(name)}: the hub tells no ETag: is this one?")
        return info

    def exists(self, name: str) -> bool:
        return name in self.names()

    def write_small(self, name: str, content: bytes) -> None:
        raise SourceError(
            f"{self.describe()} can only be read: write {name} ({len(content)} bytes) to a file "
            "(--output FILE) and commit it to the model yourself"
        )

    def reader(self) -> HttpReader:
        return HttpReader(self, self._connection())

    def _connection(self) -> RedirectingConnection:
        return RedirectingConnection(self.base_url, self.options, self._landings)

    def _model(self) -> HubModel:
        with self._asking:
            if self._known is None:
                self._known = self._ask()
            return self._known

    def _ask(self) -> HubModel:
        revision = quote(self._name.revision, safe="")
        url = f"{self.base_url}/api/models/{self._name.repo}/revision/{revision}"
        connection, tries = self._connection(), Tries(self.options, threading.Event().wait)
        try:
            while True:
                try:
                    return parse_model(self._answer(connection, url), f"the answer of {url}")
                except TransientFailure as failure:
                    connection.drop()
                    tries.failed(failure, "no answer")
        finally:
            connection.drop()

    def _answer(self, connection: RedirectingConnection, url: str) -> bytes:
        response = connection.get("GET", url, self.signer.headers("GET", url, {}))
        whole = response.status == 200
        body = _body(response, _ANSWER_BYTES_MAX if whole else ERROR_BODY_BYTES_MAX, url)
        if not whole:
            refusal = read_refusal(response.status, lower_headers(response), body)
            raise self.signer.refused(refusal, f"GET {url}")
        if len(body) > _ANSWER_BYTES_MAX:
            raise SourceError(f"the answer of {url} has more than {_ANSWER_BYTES_MAX} bytes")
        return body


class _Entries(Mapping[str, ObjectInfo]):
    """Looks up what is asked for, as a model may have hundreds of files that nobody needs."""

    def __init__(self, source: HubSource) -> None:
        self._source, self._names = source, source.names()

    def __getitem__(self, name: str) -> ObjectInfo:
        if name not in self._names:
            raise KeyError(name)
        return self._source.stat(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)


def _body(response: http.client.HTTPResponse, bytes_max: int, url: str) -> bytes:
    try:
        return response.read(bytes_max + 1)
    except BROKEN as error:
        raise TransientFailure(f"GET {url}: {told(error)}") from error
