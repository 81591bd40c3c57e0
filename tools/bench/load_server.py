"""nginx over a folder of buckets: the fastest server that speaks enough S3 for reading (ranges,
ETags, If-Match; it looks at no signature), over HTTP and HTTPS."""

import datetime
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.s3 import free_port

ROOT = Path(__file__).parents[2]
_CONFIGURATION = """
daemon off; master_process on; worker_processes 2; pid {work}/pid; error_log {work}/log;
{user}
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; etag on;
  client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
  server {{
    listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl;
    ssl_certificate {work}/certificate.pem; ssl_certificate_key {work}/key.pem;
    root {root};
    if ($arg_list-type) {{ return 403 "<Error><Code>AccessDenied</Code></Error>"; }}
  }}
}}
"""


@dataclass(frozen=True)
class Running:
    http_url: str
    https_url: str
    ca_file: Path


def nginx_binary() -> str:
    """Raises FileNotFoundError."""
    here = ROOT / ".servers" / "nginx"
    found = str(here) if here.exists() else shutil.which("nginx", path="/usr/sbin:/usr/bin")
    if not found:
        raise FileNotFoundError("nginx is missing: run tools/test_servers.sh")
    return found


@contextmanager
def nginx(root: Path, work: Path) -> Iterator[Running]:
    """Serve the folders in ``root`` as buckets."""
    work.mkdir(parents=True, exist_ok=True)
    http, https = free_port(), free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    _write_certificate(work)
    told = {"work": work, "http": http, "https": https, "root": root, "user": user}
    (work / "nginx.conf").write_text(_CONFIGURATION.format(**told))
    process = subprocess.Popen(
        [nginx_binary(), "-p", str(work), "-c", str(work / "nginx.conf")], stderr=subprocess.DEVNULL
    )
    try:
        _wait(f"http://127.0.0.1:{http}/", process)
        yield Running(
            f"http://127.0.0.1:{http}", f"https://127.0.0.1:{https}", work / "certificate.pem"
        )
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended with {process.returncode}")
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("nginx does not answer")


def _write_certificate(work: Path) -> None:
    """One that trusts itself, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "load benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (work / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (work / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
