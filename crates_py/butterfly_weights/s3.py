"""A model's folder in a bucket: credentials and signatures of botocore, bytes of our own path."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import botocore.session
from botocore import UNSIGNED
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from butterfly_core.errors import ConfigError, ModelError, SourceError
from butterfly_weights.errors import AccessDenied
from butterfly_weights.http_answers import Refusal, error_of, plain_etag, read_refusal
from butterfly_weights.http_reader import HttpReader
from butterfly_weights.http_source import HttpSource
from butterfly_weights.retrying import Pace
from butterfly_weights.source import ObjectInfo, SourceOptions, safe_name

_ENTRIES_MAX = 100_000
_SIGNATURES_MAX = 1000
_SIGNATURE_SECONDS = 60.0
"""So long the same one is used again; servers take one for 15 minutes."""


class Signer:
    """Signs requests with whatever botocore's chain finds; without credentials, not at all.

    A signature covers method and address, not the range or the condition (of the request's own
    fields only Host and x-amz-… must be covered): so the many ranges of an object share one.
    """

    def __init__(
        self, session: Any, region: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._session, self._region, self._clock = session, region, clock
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[float, Any, Mapping[str, str]]] = {}
        self._credentials = session.get_credentials()

    @property
    def who(self) -> str:
        """Whose requests these are, for messages; never a secret."""
        if self._credentials is None:
            return "no credentials were found, so requests are unsigned"
        key = self._credentials.get_frozen_credentials().access_key
        return f"access key {key[:4]}…{key[-2:]}, found by {self._credentials.method}"

    @property
    def anonymous(self) -> bool:
        return self._credentials is None

    def headers(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """The given headers and those of AWS Signature Version 4."""
        if self._credentials is None:
            return dict(headers)
        frozen, now = self._credentials.get_frozen_credentials(), self._clock()
        made_at, made_by, fields = self._known.get((method, url), (0.0, None, {}))
        if made_by != frozen or now - made_at >= _SIGNATURE_SECONDS:
            request = AWSRequest(method, url, headers={})
            S3SigV4Auth(frozen, "s3", self._region).add_auth(request)
            fields = dict(request.headers.items())
            with self._lock:
                if len(self._known) >= _SIGNATURES_MAX:
                    self._known.clear()
                self._known[method, url] = (now, frozen, fields)
        return {**headers, **fields}

    def refresh(self) -> bool:
        """Look the credentials up again; False when they are still the same."""
        with self._lock:
            before = self._credentials and self._credentials.get_frozen_credentials()
            # The old session keeps what it once found, so the chain must run in a new one.
            self._credentials = botocore.session.get_session().get_credentials()
            now = self._credentials and self._credentials.get_frozen_credentials()
            return bool(before != now)

    def refused(self, refusal: Refusal, what: str) -> SourceError:
        """The error that a refusal means."""
        return error_of(refusal, what, who=self.who)


class S3Source(HttpSource):
    """Objects ``prefix/name`` of one bucket."""

    etag_names_content: Final = True

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint_url: str | None,
        region: str | None,
        options: SourceOptions,
    ) -> None:
        self._bucket, self._prefix, self._options = bucket, prefix, options
        self.pace = Pace.of(options)
        session = botocore.session.get_session()
        try:
            chosen = region or session.get_config_variable("region") or "us-east-1"
            self.signer = Signer(session, chosen)
            self._client = session.create_client(
                "s3",
                region_name=chosen,
                endpoint_url=endpoint_url,
                verify=str(options.ca_file) if options.ca_file else None,
                config=_client_config(options, anonymous=self.signer.anonymous),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"S3 source {bucket}/{prefix}: {error}") from error
        self.base_url = _base_url(self._client, bucket, own_endpoint=endpoint_url is not None)
        super().__init__(HttpReader(self))

    @classmethod
    def of_path(
        cls, path: str, *, endpoint_url: str | None, region: str | None, options: SourceOptions
    ) -> "S3Source":
        """From ``bucket/prefix`` or ``s3://bucket/prefix``. Raises ConfigError."""
        bucket, _, prefix = path.removeprefix("s3://").strip("/").partition("/")
        if not bucket:
            raise ConfigError(f"source_path {path!r} names no bucket; write bucket/folder")
        return cls(bucket, prefix, endpoint_url=endpoint_url, region=region, options=options)

    @property
    def options(self) -> SourceOptions:
        return self._options

    def describe(self) -> str:
        return f"s3://{self._key('')} at {self.base_url}"

    def url(self, name: str) -> str:
        """Address of an object, unsigned."""
        key = f"{self._prefix}/{safe_name(name)}" if self._prefix else safe_name(name)
        return f"{self.base_url}/{quote(key, safe='/~')}"

    def entries(self) -> Mapping[str, ObjectInfo] | None:
        prefix = f"{self._prefix}/" if self._prefix else ""
        found: dict[str, ObjectInfo] = {}
        try:
            for page in self._pages(prefix):
                for entry in page.get("Contents", ()):
                    name = entry["Key"].removeprefix(prefix)
                    if name:
                        found[name] = ObjectInfo(name, entry["Size"], plain_etag(entry["ETag"]))
                if len(found) > _ENTRIES_MAX:
                    raise ModelError(f"{self.describe()} has over {_ENTRIES_MAX} objects")
        except ClientError as error:
            failure = self._translated(error, "listing the bucket")
            if "AccessDenied" in str(failure) and isinstance(failure, AccessDenied):
                return None  # allowed to read, perhaps, but not to list
            raise failure from error
        except BotoCoreError as error:
            raise SourceError(f"{self.describe()} cannot be listed: {error}") from error
        return found

    def _pages(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Of the listing. (botocore's paginator first looks through the models of all services,
        which takes longer than this.)"""
        place = {"Bucket": self._bucket, "Prefix": prefix, "Delimiter": "/"}
        page, before = self._client.list_objects_v2(**place), None
        yield page
        while page.get("IsTruncated"):
            token = page.get("NextContinuationToken")
            if token in (None, before):
                raise SourceError(f"{self.describe()}: the server's listing does not go on")
            page, before = self._client.list_objects_v2(**place, ContinuationToken=token), token
            yield page

    def write_small(self, name: str, content: bytes) -> None:
        key = self._key(safe_name(name)).partition("/")[2]
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=content)
        except ClientError as error:
            raise self._translated(error, f"writing {name} (s3:PutObject)") from error
        except BotoCoreError as error:
            raise SourceError(f"{name} cannot be written: {error}") from error

    def reader(self) -> HttpReader:
        return HttpReader(self)

    def close(self) -> None:
        super().close()
        self._client.close()

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._bucket, self._prefix, name) if part)

    def _translated(self, error: Any, what: str) -> SourceError:
        answer = error.response
        metadata = answer.get("ResponseMetadata", {})
        status = metadata.get("HTTPStatusCode", 0)
        code = str(answer.get("Error", {}).get("Code", ""))
        refusal = read_refusal(
            status, metadata.get("HTTPHeaders", {}), f"<Code>{code}</Code>".encode()
        )
        return self.signer.refused(refusal, f"{self.describe()}: {what}")


def _client_config(options: SourceOptions, *, anonymous: bool) -> Any:
    proxies = {"http": options.proxy_url, "https": options.proxy_url}
    return Config(
        signature_version=UNSIGNED if anonymous else "s3v4",
        connect_timeout=options.connect_timeout_seconds,
        read_timeout=options.stall_timeout_seconds,
        retries={"max_attempts": options.tries_max, "mode": "standard"},
        proxies=proxies if options.proxy_url else None,
        # Checksums over whole objects say nothing about ranges, and some servers fail on them.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
    )


def _base_url(client: Any, bucket: str, *, own_endpoint: bool) -> str:
    endpoint = str(client.meta.endpoint_url).rstrip("/")
    style = (client.meta.config.s3 or {}).get("addressing_style", "auto")
    amazon = endpoint.endswith(".amazonaws.com") and not own_endpoint and "." not in bucket
    if style == "virtual" or (style == "auto" and amazon):
        scheme, _, host = endpoint.partition("://")
        return f"{scheme}://{bucket}.{host}"
    return f"{endpoint}/{bucket}"
