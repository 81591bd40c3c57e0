"""S3 step by step (key, list, head, range): says which permission, key or setting is missing."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from butterfly.admin.checks.finding import Finding, Verdict, failed, passed, warned

if TYPE_CHECKING:
    from butterfly.config import ModelSection

PROBE = "config.json"
PROBE_BYTES = 16
NAME = "S3"


def look_at_s3(model: "ModelSection") -> list[Finding]:
    """Four findings at most; stops after the first step that cannot work."""
    import boto3

    bucket, _, prefix = model.source_path.removeprefix("s3://").partition("/")
    key = f"{prefix.rstrip('/')}/{PROBE}" if prefix.strip("/") else PROBE
    session = boto3.Session(region_name=model.region)
    credentials = session.get_credentials()
    if credentials is None:
        return [
            failed(
                f"{NAME} credentials",
                "none found",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or give the machine a role",
            )
        ]
    found = [
        passed(
            f"{NAME} credentials",
            f"key {_masked(credentials.access_key)} from {credentials.method}",
        )
    ]
    client = _client(session, model)
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("range", lambda: _range(client, bucket, key)),  # first: only a GET's refusal has a reason
        ("head", lambda: _head(client, bucket, key)),
        ("list", lambda: _list(client, bucket, prefix)),
    )
    for step, act in steps:
        found.append(_try(step, act, bucket, key, model.endpoint_url))
        if found[-1].verdict is Verdict.FAIL:
            break
    return found


def _client(session: Any, model: "ModelSection") -> Any:
    from botocore.config import Config

    style = {"addressing_style": "path"} if model.endpoint_url else {}
    patience = Config(
        connect_timeout=3,
        read_timeout=5,
        retries={"total_max_attempts": 1},
        s3=style,
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
    )
    return session.client("s3", endpoint_url=model.endpoint_url, config=patience)


def _head(client: Any, bucket: str, key: str) -> str:
    return f"{key} has {client.head_object(Bucket=bucket, Key=key)['ContentLength']} bytes"


def _range(client: Any, bucket: str, key: str) -> str:
    answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{PROBE_BYTES - 1}")
    answer["Body"].close()
    if not answer.get("ContentRange"):
        raise RangesIgnored
    return f"{answer['ContentRange']} delivered"


class RangesIgnored(Exception):
    """The server sent a whole object where a range was asked for."""


def _list(client: Any, bucket: str, prefix: str) -> str:
    folder = f"{prefix.rstrip('/')}/" if prefix.strip("/") else ""
    answer = client.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1000)
    names = [entry["Key"] for entry in answer.get("Contents", ())]
    shards = sum(name.endswith(".safetensors") for name in names)
    return f"{len(names)} objects, {shards} of them safetensors"


def _try(step: str, act: Callable[[], str], bucket: str, key: str, endpoint: str | None) -> Finding:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return passed(f"{NAME} {step}", act())
    except RangesIgnored:
        return failed(
            f"{NAME} {step}",
            "the server ignores ranges and sends whole objects",
            "put the model on a server that supports ranges (S3, MinIO, Ceph, rclone)",
        )
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        return explain(step, code, bucket, key)
    except BotoCoreError as error:
        where = endpoint or "AWS"
        return failed(
            f"{NAME} {step}", f"{where}: {error}", "check [model] endpoint_url, proxy and route"
        )


def explain(step: str, code: str, bucket: str, key: str) -> Finding:
    """The story behind S3's error code. ``step`` is head, range or list."""
    name = f"{NAME} {step}"
    if code in _KEY_PROBLEMS:
        return failed(name, code, _KEY_PROBLEMS[code])
    if code in ("NoSuchBucket",) or (code == "404" and step == "list"):
        return failed(
            name, f"there is no bucket {bucket}", "correct [model] source_path or endpoint_url"
        )
    if code in ("404", "NoSuchKey", "NotFound"):
        return failed(
            name,
            f"s3://{bucket}/{key} does not exist",
            "correct [model] source_path: the folder that holds config.json; or upload the model",
        )
    if code in ("403", "AccessDenied", "Forbidden", "AllAccessDisabled"):
        return _denied(name, step, bucket, key)
    if code in (
        "301",
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
    ):
        return failed(
            name, f"{bucket} is in another region ({code})", "set [model] region to the bucket's"
        )
    return failed(
        name, f"error {code or 'without a code'}", "see the server's log; try again later"
    )


def _denied(name: str, step: str, bucket: str, key: str) -> Finding:
    if step == "list":
        return warned(
            name,
            "access denied: s3:ListBucket is missing",
            f"not needed to load; allow s3:ListBucket on arn:aws:s3:::{bucket} to have missing "
            "objects reported as missing instead of as forbidden",
        )
    folder = key.rpartition("/")[0]
    objects = f"arn:aws:s3:::{bucket}/{folder}/*" if folder else f"arn:aws:s3:::{bucket}/*"
    return failed(
        name,
        f"access to s3://{bucket}/{key} denied",
        f"allow s3:GetObject on {objects}; without s3:ListBucket on the bucket, S3 also says so "
        "when the object does not exist",
    )


_KEY_PROBLEMS = {
    "InvalidAccessKeyId": "the server does not know it: check AWS_ACCESS_KEY_ID and endpoint_url",
    "SignatureDoesNotMatch": "the secret does not belong to the key: check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session is over: get new credentials (aws sso login, or a new token)",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to this key: unset it or get a new one",
    "RequestTimeTooSkewed": "this machine's clock is off: timedatectl set-ntp true",
}


def _masked(access_key: str) -> str:
    return f"{access_key[:4]}…{access_key[-2:]}" if len(access_key) > 8 else "…"
