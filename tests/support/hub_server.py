"""A small HTTP server that behaves like the Hugging Face hub, and a second one like the store
to which it sends on; it is not the hub. After huggingface_hub's client and its documents.

with hub_server(folder) as hub:
    hub.revisions["main"] = hub.commit(other_folder)
    source = open_source("huggingface", REPO, endpoint_url=hub.url)
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.support.s3 import serving

REPO = "org/tiny"


@dataclass(frozen=True)
class Request:
    """One request, as the hub ("hub") or the store ("store") saw it."""

    where: str
    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class HubServer:
    """A running hub with one model. ``token`` None lets everybody in; ``uses_max`` is how often
    a signed address of the store is good."""

    url: str = ""
    store_url: str = ""
    token: str | None = None
    gated: bool = False
    uses_max: int = 1_000_000
    renamed_to: str = ""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    looks: list[str] = field(default_factory=list)
    """Commits that the next looks at any branch find, one after the other."""
    asked: list[Request] = field(default_factory=list)
    signed: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look_up(self, revision: str) -> str:
        with self.lock:
            if self.looks and revision in self.revisions:
                return self.looks.pop(0)
            return self.revisions.get(revision, revision)

    def commit(self, folder: Path) -> str:
        """Keep a folder's files as a commit; its name."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        told = b"".join(name.encode() + content for name, content in sorted(files.items()))
        sha = hashlib.sha1(told, usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        return sha

    def requests(self, where: str, method: str, suffix: str = "") -> list[Request]:
        with self.lock:
            return [
                r
                for r in self.asked
                if (r.where, r.method) == (where, method)
                if urlsplit(r.path).path.endswith(suffix)
            ]

    def sign(self, digest: str) -> str:
        with self.lock:
            signature = f"{len(self.signed):08x}"
            self.signed[signature] = 0
        return f"{self.store_url}/objects/{digest}?X-Amz-Signature={signature}"

    def use(self, signature: str) -> bool:
        """False when the address has expired."""
        with self.lock:
            if signature not in self.signed or self.signed[signature] >= self.uses_max:
                return False
            self.signed[signature] += 1
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    hub: HubServer
    where = ""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        """Tests print nothing."""

    def note(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.asked.append(Request(self.where, self.command, self.path, headers))

    def reply(self, status: int, body: bytes = b"", **fields: str) -> None:
        self.send_response_only(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def content(self, content: bytes, etag: str, **fields: str) -> None:
        """A whole object, or the range that was asked for."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not found:
            self.reply(200, content, ETag=etag, **fields)
            return
        first, last = int(found[1]), min(int(found[2]), len(content) - 1)
        where = f"bytes {first}-{last}/{len(content)}"
        self.reply(206, content[first : last + 1], ETag=etag, Content_Range=where, **fields)


class _Hub(_Handler):
    where = "hub"

    def do_GET(self) -> None:
        self.note()
        path = unquote(urlsplit(self.path).path)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.reply(401, X_Error_Code="GatedRepo" if self.hub.gated else "RepoNotFound")
        elif self.hub.gated:
            self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif self.hub.renamed_to and REPO in path:
            self.reply(307, Location=self.path.replace(REPO, self.hub.renamed_to))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            self._describe(found[1], found[2])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            self._resolve(found[2], found[3])
        else:
            self.reply(404)

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _describe(self, repo: str, revision: str) -> None:
        commit = self.hub.look_up(revision)
        if repo not in (REPO, self.hub.renamed_to):
            self.reply(401 if self.hub.token is None else 404, X_Error_Code="RepoNotFound")
        elif commit not in self.hub.commits:
            self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        else:
            files = [{"rfilename": name} for name in self.hub.commits[commit]]
            answer = {"id": repo, "sha": commit, "siblings": files, "gated": self.hub.gated}
            self.reply(200, json.dumps(answer).encode(), Content_Type="application/json")

    def _resolve(self, commit: str, name: str) -> None:
        content = self.hub.commits.get(commit, {}).get(name)
        if content is None:
            self.reply(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return
        digest = hashlib.sha256(content).hexdigest()
        if not name.endswith(".safetensors"):
            self.content(content, f'"{digest[:40]}"', X_Repo_Commit=commit)
            return
        self.reply(
            302,
            b"Found. Redirecting",
            Location=self.hub.sign(digest),
            X_Linked_Etag=f'"{digest}"',
            X_Linked_Size=str(len(content)),
            X_Repo_Commit=commit,
        )


class _Store(_Handler):
    where = "store"

    def do_GET(self) -> None:
        self.note()
        parts = urlsplit(self.path)
        signature = parse_qs(parts.query).get("X-Amz-Signature", [""])[0]
        if "Authorization" in self.headers:
            self.reply(400, b"<Code>InvalidArgument</Code>")  # as S3: one kind of proof alone
        elif self.command == "HEAD" or not self.hub.use(signature):
            self.reply(403, b"<Code>AccessDenied</Code><Message>Request has expired</Message>")
        else:
            self._serve(parts.path.rpartition("/")[2])

    do_HEAD = do_GET  # noqa: N815 (http.server's name)

    def _serve(self, digest: str) -> None:
        etag = f'"{digest[:32]}-2"'  # the store's own, of a multipart upload
        contents = (c for files in self.hub.commits.values() for c in files.values())
        content = next(c for c in contents if hashlib.sha256(c).hexdigest() == digest)
        if self.headers.get("If-Match", etag) != etag:
            self.reply(412)
        else:
            self.content(content, etag)


@contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    """A hub whose ``REPO`` has the folder's files on its branch main."""
    server = HubServer()
    server.revisions["main"] = server.commit(folder)

    class Hub(_Hub):
        hub = server

    class Store(_Store):
        hub = server

    with serving(Hub) as hub_url, serving(Store) as store_url:
        server.url, server.store_url = hub_url, store_url.replace("127.0.0.1", "localhost")
        yield server


def hub_cache(folder: Path, cache: Path, commit: str, *, ref: str = "main") -> Path:
    """The folder's files in the layout of huggingface_hub's cache; the snapshot's folder."""
    repo = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot.mkdir(parents=True)
    path = repo / "refs" / quote(ref, safe="/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(commit)
    for file in folder.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (repo / "blobs" / digest).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    return snapshot
