"""A model's folder on a web server: files by name, ranges of their bytes, no listing."""

from typing import Final
from urllib.parse import quote

from butterfly_core.errors import SourceError
from butterfly_weights.addresses import plain_url
from butterfly_weights.bearer import BearerSigner, http_token
from butterfly_weights.http_reader import HttpReader
from butterfly_weights.http_source import HttpSource
from butterfly_weights.redirects import Landings, RedirectingConnection
from butterfly_weights.retrying import Pace
from butterfly_weights.source import ObjectInfo, SourceOptions, safe_name


class WebSource(HttpSource):
    """Objects ``base_url/name``."""

    # Two servers behind one name may call the same bytes differently (Apache does).
    etag_names_content: Final = False

    def __init__(self, base_url: str, options: SourceOptions) -> None:
        self.base_url = plain_url(base_url, "source_path")
        self.options, self.pace = options, Pace.of(options)
        self.signer = BearerSigner(self.base_url, http_token())
        self._landings = Landings()
        super().__init__(self.reader())

    def describe(self) -> str:
        return f"web folder {self.base_url}"

    def url(self, name: str) -> str:
        return f"{self.base_url}/{quote(safe_name(name), safe='/~')}"

    def entries(self) -> None:
        """The web knows no listing."""

    def stat(self, name: str) -> ObjectInfo:
        info = super().stat(name)
        if not info.etag:
            raise SourceError(
                f"{self.url(name)}: the server tells neither ETag nor Last-Modified, so a file "
                "that changes under the load could not be noticed: switch one of them on there"
            )
        return info

    def write_small(self, name: str, content: bytes) -> None:
        raise SourceError(
            f"{self.describe()} can only be read: write {name} ({len(content)} bytes) to a file "
            "(--output FILE) and put it beside the model yourself"
        )

    def reader(self) -> HttpReader:
        connection = RedirectingConnection(self.base_url, self.options, self._landings)
        return HttpReader(self, connection)
