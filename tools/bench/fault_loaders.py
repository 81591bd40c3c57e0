"""Loads one safetensors object with one library, and prints the digest of every tensor as JSON.

Run by ``faults.py`` as ``python tools/bench/fault_loaders.py LOADER URL``, one process each: some
of them hang or crash. Each reads a tensor's range straight into its memory, eight at once, as an
obvious program around that library would.
"""

import atexit
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "crates_py")]

BUCKET, FOLDER, SHARD = "bucket", "model", "model.safetensors"
KEY = f"{FOLDER}/{SHARD}"
THREADS = 8
READ_SECONDS = 10
Digests = Mapping[str, str]
ReadRange = Callable[[int, int], bytes]
"""The bytes from the first number up to the second, which is not included."""


def ours(url: str) -> tuple[Digests, int]:
    """Butterfly's loader, with the manifest that lies beside the model."""
    from butterfly_core.layers import all_parts
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.loader import Loader
    from butterfly_weights.source import open_source

    source = open_source("s3", f"{BUCKET}/{FOLDER}", endpoint_url=url)
    try:
        checkpoint = read_checkpoint(source)
        layers = int(checkpoint.config["num_hidden_layers"])
        result = Loader(source, checkpoint).load(all_parts(layers))
    finally:
        source.close()
    digests = {name: digest_of(tensor.data) for name, tensor in result.tensors.items()}
    return digests, len(result.healed)


def runai(url: str) -> tuple[Digests, int]:
    """runai-model-streamer with its S3 plugin."""
    os.environ["AWS_ENDPOINT_URL"] = url
    os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
    os.environ["RUNAI_STREAMER_CONCURRENCY"] = str(THREADS)
    from runai_model_streamer import SafetensorsStreamer

    found = {}
    with SafetensorsStreamer() as streamer:
        streamer.stream_file(f"s3://{BUCKET}/{KEY}")
        for name, tensor in streamer.get_tensors():
            found[name] = digest_of(tensor.contiguous().view(-1).view(_torch_bytes()).numpy())
    return found, 0


def _torch_bytes() -> Any:
    import torch

    return torch.uint8


def boto3(url: str) -> tuple[Digests, int]:
    """boto3 ``get_object(Range=…)``."""
    import boto3 as library
    from botocore.config import Config

    config = Config(
        read_timeout=READ_SECONDS,
        s3={"addressing_style": "path"},
        response_checksum_validation="when_required",
    )
    client = library.client("s3", endpoint_url=url, config=config)

    def read(start: int, stop: int) -> bytes:
        span = f"bytes={start}-{stop - 1}"
        body = client.get_object(Bucket=BUCKET, Key=KEY, Range=span)["Body"]
        return bytes(body.read(stop - start))

    return by_ranges(read), 0


def obstore(url: str) -> tuple[Digests, int]:
    """obstore's ``get_range``."""
    import obstore as library
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=url,
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )

    def read(start: int, stop: int) -> bytes:
        return bytes(library.get_range(store, KEY, start=start, end=stop))

    return by_ranges(read), 0


def awscrt(url: str) -> tuple[Digests, int]:
    """AWS' common runtime, its S3 client."""
    from awscrt import auth, http, io, s3

    group = io.EventLoopGroup(2)
    bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
    region = os.environ["AWS_DEFAULT_REGION"]
    provider = auth.AwsCredentialsProvider.new_environment()
    client = s3.S3Client(
        bootstrap=bootstrap,
        region=region,
        tls_mode=s3.S3RequestTlsMode.DISABLED,
        signing_config=s3.create_default_s3_signing_config(
            region=region, credential_provider=provider
        ),
    )

    def read(start: int, stop: int) -> bytes:
        landed = bytearray(stop - start)

        def on_body(chunk: bytes, offset: int, **_: object) -> None:
            place = offset if offset < start else offset - start
            landed[place : place + len(chunk)] = chunk

        headers = [("host", urlsplit(url).netloc), ("range", f"bytes={start}-{stop - 1}")]
        request = http.HttpRequest("GET", f"/{BUCKET}/{KEY}", http.HttpHeaders(headers))
        kind = s3.S3RequestType.GET_OBJECT
        asked = client.make_request(request=request, type=kind, on_body=on_body)
        asked.finished_future.result()
        return bytes(landed[: stop - start])

    return by_ranges(read), 0


def by_ranges(read: ReadRange) -> Digests:
    """Header, then every tensor's range; nothing is checked that the format does not need."""
    length = int.from_bytes(read(0, 8), "little")
    entries = json.loads(read(8, 8 + length))
    entries.pop("__metadata__", None)
    first = 8 + length

    def tensor(name: str) -> tuple[str, str]:
        start, stop = entries[name]["data_offsets"]
        content = read(first + start, first + stop)
        if len(content) != stop - start:
            raise EOFError(f"{name}: {len(content)} of {stop - start} bytes")
        return name, digest_of(content)

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(pool.map(tensor, entries))


def digest_of(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()


LOADERS: Mapping[str, Callable[[str], tuple[Digests, int]]] = {
    "ours": ours,
    "runai_model_streamer": runai,
    "boto3": boto3,
    "obstore": obstore,
    "awscrt": awscrt,
}
"""By the module that each needs (but for ours)."""


def report_seconds() -> None:
    """Tell at the end, however it comes, how long it took without the imports."""
    started = time.monotonic()
    atexit.register(lambda: print(f"seconds={time.monotonic() - started}", file=sys.stderr))


if __name__ == "__main__":
    importlib.import_module("butterfly_weights.s3" if sys.argv[1] == "ours" else sys.argv[1])
    report_seconds()
    digests, healed = LOADERS[sys.argv[1]](sys.argv[2])
    print(json.dumps({"digests": digests, "healed": healed}))
