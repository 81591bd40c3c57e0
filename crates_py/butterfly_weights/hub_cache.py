"""The folders that huggingface_hub keeps on a disk: ``models--org--name`` with refs, blobs and
snapshots, whose files are links into the blobs."""

import os
from collections.abc import Mapping
from pathlib import Path

from butterfly_core.errors import ConfigError, ModelError
from butterfly_weights.addresses import MAIN, HubName, is_commit
from butterfly_weights.bearer import hub_home
from butterfly_weights.errors import NotFound
from butterfly_weights.filesystem import FilesystemSource

_REF_BYTES_MAX = 200
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})


class SnapshotSource(FilesystemSource):
    """A commit of a model as huggingface_hub left it on this disk."""

    def __init__(self, folder: Path, name: HubName) -> None:
        super().__init__(folder)
        self._name = name
        self.folder = folder

    def describe(self) -> str:
        return f"{self._name} in the hub cache, {super().describe()}"

    def version(self) -> str:
        return self._root.name

    def pinned_path(self) -> str:
        return f"{self._name.repo}@{self._root.name}"


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """As huggingface_hub: HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE."""
    said = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return said.upper() in _TRUE


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps models."""
    said = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(said)).expanduser() if said else hub_home(environ) / "hub"


def open_offline(name: HubName, cache: Path) -> SnapshotSource:
    """The snapshot of a revision. Raises NotFound, ModelError."""
    folder = cache / f"models--{name.repo.replace('/', '--')}"
    if not folder.is_dir():
        raise NotFound(
            f"{folder} does not exist, and HF_HUB_OFFLINE is set: download the model there "
            f"(hf download {name.repo} --revision {name.revision}), or unset it"
        )
    return SnapshotSource(snapshot_of(folder, name.revision), name)


def snapshot_of(folder: Path, revision: str = MAIN) -> Path:
    """The folder of a revision in ``models--org--name``. Raises NotFound, ModelError."""
    commit = revision if is_commit(revision) else _ref(folder, revision)
    found = folder / "snapshots" / commit
    if not found.is_dir():
        raise NotFound(f"{folder} has no snapshot {commit} ({revision}): download it again")
    return found


def is_repo_folder(folder: Path) -> bool:
    """True for ``models--org--name`` itself, which holds snapshots and no files of a model."""
    return folder.name.startswith("models--") and (folder / "snapshots").is_dir()


def _ref(folder: Path, revision: str) -> str:
    if ".." in revision.split("/") or revision.startswith("/"):
        raise ConfigError(f"{revision!r} is no revision")
    path = folder / "refs" / revision
    try:
        with path.open("rb") as file:
            commit = file.read(_REF_BYTES_MAX).decode("latin-1").strip()
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read ({error.strerror}): download the revision again"
        ) from None
    if not is_commit(commit):
        raise ModelError(f"{path} holds no commit: download the revision again")
    return commit
