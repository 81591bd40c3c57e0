"""What an HTTP response says about a range that was asked for. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_core.errors import ModelError, SourceError
from butterfly_weights.errors import AccessDenied, NotFound, SourceChanged, TransientFailure
from butterfly_weights.source import ObjectInfo

ERROR_BODY_BYTES_MAX = 64 << 10
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_COUNT = re.compile(r"[0-9]{1,19}")  # str.isdigit takes "²", which int refuses
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_MODIFIED = "modified: "
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable"})
EXPIRED_CODES = frozenset({"ExpiredToken", "TokenRefreshRequired", "InvalidToken"})
_ADVICE = {
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it (NTP)",
    "SignatureDoesNotMatch": "the secret key is wrong for this access key",
    "InvalidAccessKeyId": "the access key is not known to this server",
    "ExpiredToken": "the session token has expired: renew the credentials",
    "InvalidToken": "the session token is not valid: renew the credentials",
    "AuthorizationHeaderMalformed": "the region is wrong: set [model] region",
    "PermanentRedirect": "the bucket is in another region: set [model] region or endpoint_url",
    "TemporaryRedirect": "the bucket is in another region: set [model] region or endpoint_url",
    "AccessDenied": "the key needs s3:GetObject on the model's objects (and s3:ListBucket)",
    "NoSuchBucket": "the bucket does not exist: check [model] source_path",
    "NoSuchKey": "the object does not exist: check [model] source_path",
}
_CODE_OF_STATUS = {
    301: "PermanentRedirect",
    307: "TemporaryRedirect",
    403: "AccessDenied",
    404: "NoSuchKey",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is not the data: HTTP status, the S3 error code, header fields."""

    status: int
    code: str
    headers: Mapping[str, str]

    @property
    def credentials_expired(self) -> bool:
        return self.code in EXPIRED_CODES


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Make sense of an error response; HEAD has no body, so the status must do."""
    found = _CODE.search(body)
    code = found.group(1).decode() if found else _CODE_OF_STATUS.get(status, f"HTTP {status}")
    return Refusal(status, code, headers)


def error_of(
    refusal: Refusal, what: str, *, who: str, advice_of: Mapping[str, str] = _ADVICE
) -> SourceError:
    """The error to raise for a refused request; ``who`` says whose credentials signed it, and
    ``advice_of`` a code what to do."""
    story = f"{what}: {refusal.code} ({refusal.status})"
    if refusal.status in _TRANSIENT_STATUSES or refusal.code in _TRANSIENT_CODES:
        wait = refusal.headers.get("retry-after", "")
        return TransientFailure(
            story,
            retry_after_seconds=float(wait) if _COUNT.fullmatch(wait) else 0.0,
            slow_down=refusal.status in (429, 503),
        )
    advice = advice_of.get(refusal.code, "")
    region = refusal.headers.get("x-amz-bucket-region")
    if region:
        advice = f"{advice}; the server says the bucket's region is {region!r}"
    message = f"{story}: {advice} [{who}]" if advice else f"{story} [{who}]"
    if refusal.status in (404, 410):
        return NotFound(message)
    if refusal.status in (400, 401, 403):
        return AccessDenied(message)
    return SourceError(message)


def check_range(
    status: int, headers: Mapping[str, str], info: ObjectInfo, offset: int, count: int
) -> None:
    """Refuse a response that is not exactly the bytes asked for, of the version known.

    200 with a right Content-Range is taken as 206 (rclone and some gateways answer so).
    """
    what = f"{info.name}, bytes {offset}-{offset + count - 1}"
    _refuse_encoding(headers, what)
    content_range = headers.get("content-range")
    if content_range is None:
        raise SourceError(
            f"{what}: the server sent the whole object ({status}): it does not support ranges. "
            "Use a server that does, or copy the model to a folder (source_type filesystem)"
        )
    _refuse_other_version(headers, info, what)
    found = _RANGE.fullmatch(content_range)
    if not found:
        raise SourceError(f"{what}: the server answered with Content-Range {content_range!r}")
    first, last, size = found.groups()
    if size not in ("*", str(info.size)):
        raise changed(info, f"has {size} bytes")
    if (int(first), int(last)) != (offset, offset + count - 1):
        raise SourceError(f"{what}: the server sent bytes {first}-{last} instead")
    if headers.get("content-length") != str(count):
        raise SourceError(f"{what}: Content-Length is {headers.get('content-length')!r}")


def check_whole(headers: Mapping[str, str], what: str, *, bytes_max: int) -> int:
    """Size of a body that is a whole object. Raises ModelError when too large, SourceError."""
    _refuse_encoding(headers, what)
    length = headers.get("content-length", "")
    if not _COUNT.fullmatch(length):
        raise SourceError(f"{what}: the server sent no Content-Length")
    if int(length) > bytes_max:
        raise ModelError(f"{what} has {length} bytes; at most {bytes_max} are expected")
    return int(length)


def plain_etag(field: str) -> str:
    """Without the quotes, which some servers leave out in listings; a weak one keeps its W/."""
    trimmed = " ".join(field.split())  # a folded field must not fold a later request's
    weak = "W/" if trimmed.startswith("W/") else ""
    value = trimmed.removeprefix("W/").strip('"')
    return f"{weak}{value}" if value else ""


def version_of(headers: Mapping[str, str]) -> str:
    """What changes whenever the object does: its ETag, else its date; "" without either."""
    etag = plain_etag(headers.get("etag", ""))
    date = " ".join(headers.get("last-modified", "").split())
    return etag or (f"{_MODIFIED}{date}" if date else "")


def condition_of(info: ObjectInfo) -> dict[str, str]:
    """Header fields by which a server refuses (412) when the object is another by now.

    A weak ETag must not be used so (RFC 9110, 13.1.1); it is only compared.
    """
    if info.etag.startswith(_MODIFIED):
        return {"If-Unmodified-Since": info.etag.removeprefix(_MODIFIED)}
    if not info.etag or info.etag.startswith("W/"):
        return {}
    return {"If-Match": f'"{info.etag}"'}


def changed(info: ObjectInfo, now: str) -> SourceChanged:
    return SourceChanged(
        f"{info.name} was changed: {info.size} bytes, ETag {info.etag}, when the model was "
        f"opened; now it {now}",
        object_name=info.name,
    )


def out_of_range(headers: Mapping[str, str], info: ObjectInfo, offset: int) -> SourceError:
    """The error for 416: the object ends before the range."""
    real = headers.get("content-range", "bytes */?").rpartition("/")[2]
    return SourceError(
        f"{info.name}: byte {offset} was asked for, as the object has {info.size} bytes by its "
        f"listing; the server says (416) that it has {real}. Upload it again"
    )


def _refuse_encoding(headers: Mapping[str, str], what: str) -> None:
    for field in ("content-encoding", "transfer-encoding"):
        value = headers.get(field, "identity").strip().lower()
        if value not in ("identity", "aws-chunked", ""):
            raise SourceError(
                f"{what}: the server answers with {field} {value!r}; bytes must come as stored: "
                "switch compression off there (or the proxy between)"
            )


def _refuse_other_version(headers: Mapping[str, str], info: ObjectInfo, what: str) -> None:
    if not info.etag:
        return
    if info.etag.startswith(_MODIFIED):
        kind, seen = (
            "Last-Modified",
            version_of({"last-modified": headers.get("last-modified", "")}),
        )
    else:
        kind, seen = "ETag", plain_etag(headers.get("etag", ""))
    if not seen:
        raise SourceError(f"{what}: the response has no {kind}, so its version cannot be told")
    if seen.removeprefix("W/") != info.etag.removeprefix("W/"):
        raise changed(info, f"has {kind} {seen.removeprefix(_MODIFIED)}")
