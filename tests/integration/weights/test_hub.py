"""Models of a Hugging Face hub: one commit, its store's signed addresses, its refusals, and the
hub cache on a disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.errors import ConfigError, ModelError, SourceError
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.errors import AccessDenied, NotFound
from butterfly_weights.loader import Loader
from butterfly_weights.source import Pinned, Source, SourceOptions, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.hub_server import REPO, HubServer, hub_cache, hub_server

LAYERS = 4
TOKEN = "hf_averysecrettoken"
SHARD = "model-00002-of-00003.safetensors"
QUICK = SourceOptions(
    tries_max=3,
    backoff_first_seconds=0.001,
    backoff_max_seconds=0.005,
    stall_timeout_seconds=2.0,
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    with hub_server(folder) as running:
        yield running


@pytest.fixture
def opened() -> Iterator[list[Source]]:
    sources: list[Source] = []
    yield sources
    for source in sources:
        source.close()


def at(hub: HubServer, opened: list[Source], path: str = REPO) -> Source:
    opened.append(open_source("huggingface", path, endpoint_url=hub.url, options=QUICK))
    return opened[-1]


def contents(source: Source) -> dict[str, bytes]:
    result = Loader(source, read_checkpoint(source)).load(all_parts(LAYERS))
    return {name: bytes(tensor.data) for name, tensor in result.tensors.items()}


def of_folder(folder: Path) -> dict[str, bytes]:
    return contents(open_source("filesystem", str(folder)))


def test_a_model_is_read_through_the_store_that_the_hub_names(
    hub: HubServer, opened: list[Source], folder: Path
) -> None:
    source = at(hub, opened, f"hf://{REPO}@main")

    assert contents(source) == of_folder(folder)
    assert read_checkpoint(source).revision == hub.revisions["main"]


def test_a_shard_is_asked_for_at_the_hub_once_and_then_at_the_store(
    hub: HubServer, opened: list[Source]
) -> None:
    contents(at(hub, opened))

    assert len(hub.requests("hub", "GET", SHARD)) == 1
    assert len(hub.requests("store", "GET")) > 3


def test_the_token_is_for_the_hub_alone(
    hub: HubServer, opened: list[Source], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\n")

    assert contents(at(hub, opened)) == of_folder(folder)

    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in hub.requests("hub", "GET"))
    assert not [r for r in hub.asked if r.where == "store" and "authorization" in r.headers]


def test_the_token_file_is_read_where_the_hubs_own_client_keeps_it(
    hub: HubServer, opened: list[Source], tmp_path: Path
) -> None:
    hub.token = TOKEN
    (tmp_path / "hf-home").mkdir()
    (tmp_path / "hf-home" / "token").write_text(TOKEN)

    assert at(hub, opened).exists("config.json")


def test_a_signed_address_that_expires_is_asked_for_again(
    hub: HubServer, opened: list[Source], folder: Path
) -> None:
    hub.uses_max = 1

    assert contents(at(hub, opened)) == of_folder(folder)


def test_a_store_that_refuses_for_ever_is_told_without_its_signature(
    hub: HubServer, opened: list[Source]
) -> None:
    source = at(hub, opened)
    source.stat(SHARD)
    hub.uses_max = 0

    with pytest.raises(AccessDenied, match="store that it sends on to") as refused:
        contents(source)

    assert "Signature" not in str(refused.value)


def test_a_branch_that_moves_changes_nothing_under_a_source(
    hub: HubServer, opened: list[Source], folder: Path, tmp_path: Path
) -> None:
    source = at(hub, opened)
    assert isinstance(source, Pinned)
    before = source.version()
    write_checkpoint(tmp_path / "other", Shape(seed=2))
    hub.revisions["main"] = hub.commit(tmp_path / "other")

    assert contents(source) == of_folder(folder)
    assert contents(at(hub, opened, source.pinned_path())) == of_folder(folder)
    assert contents(at(hub, opened)) == of_folder(tmp_path / "other")
    assert (source.version(), source.pinned_path()) == (before, f"{REPO}@{before}")


def test_a_model_that_was_renamed_is_found_with_the_token_kept(
    hub: HubServer, opened: list[Source], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token, hub.renamed_to = TOKEN, "org/other"
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert contents(at(hub, opened)) == of_folder(folder)


@pytest.mark.parametrize(
    ("path", "token", "gated", "kind", "says"),
    [
        ("org/unknown", None, False, NotFound, "no model org/unknown.*private.*HF_TOKEN"),
        (f"{REPO}@v9", None, False, NotFound, "no revision 'v9'.*branch, tag or commit"),
        (REPO, "other", False, NotFound, f"no model {REPO}.*private.*set HF_TOKEN"),
        (REPO, "other", True, AccessDenied, "gated: set HF_TOKEN.*accept its conditions"),
        (REPO, None, True, AccessDenied, f"gated.*Access is restricted|gated.*/{REPO}"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    hub: HubServer,
    opened: list[Source],
    path: str,
    token: str | None,
    gated: bool,
    kind: type[Exception],
    says: str,
) -> None:
    hub.token, hub.gated = token, gated

    with pytest.raises(kind, match=says):
        read_checkpoint(at(hub, opened, path))

    assert len(hub.asked) == 1


def test_a_wrong_token_is_told_by_its_ends_alone(
    hub: HubServer, opened: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "another"
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    with pytest.raises(SourceError, match=r"token hf_a…en from HF_TOKEN") as refused:
        read_checkpoint(at(hub, opened))

    assert TOKEN not in str(refused.value)


def test_a_file_that_the_commit_has_not_is_told_without_asking(
    hub: HubServer, opened: list[Source]
) -> None:
    source = at(hub, opened)
    entries = source.entries()
    assert entries is not None
    asked = len(hub.asked)

    assert "chat_template.jinja" not in entries
    assert sorted(entries) == list(entries)
    assert len(entries) == len(hub.commits[hub.revisions["main"]])
    with pytest.raises(NotFound, match=r"org/tiny@main .* has no file chat_template\.jinja"):
        source.stat("chat_template.jinja")
    assert len(hub.asked) == asked


def test_nothing_is_written_to_a_hub(hub: HubServer, opened: list[Source]) -> None:
    with pytest.raises(SourceError, match=r"can only be read.*--output"):
        at(hub, opened).write_small("butterfly.manifest.json", b"{}")


def test_a_server_that_is_no_hub_is_refused_by_its_answer(
    folder: Path, opened: list[Source], hub: HubServer
) -> None:
    hub.revisions["main"] = "not-a-commit"
    hub.commits["not-a-commit"] = {}

    with pytest.raises(SourceError, match="names no commit: is this a Hugging Face hub"):
        read_checkpoint(at(hub, opened))


# The hub cache on a disk.


def test_offline_the_hub_cache_is_the_source(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.revisions["main"]
    hub_cache(folder, tmp_path / "hf-home" / "hub", commit)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = open_source("huggingface", REPO)

    assert contents(source) == of_folder(folder)
    assert isinstance(source, Pinned)
    assert source.pinned_path() == f"{REPO}@{commit}"
    assert hub.asked == []


def test_offline_and_online_read_the_same_revision(
    hub: HubServer,
    opened: list[Source],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    online = read_checkpoint(at(hub, opened))
    hub_cache(folder, tmp_path / "cache", hub.revisions["main"], ref="refs/pr/1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")

    offline = read_checkpoint(open_source("huggingface", f"{REPO}@refs/pr/1"))

    assert offline.revision == online.revision


@pytest.mark.parametrize("place", ["snapshot", "repository"])
def test_a_folder_of_the_hub_cache_is_a_filesystem_source(
    folder: Path, tmp_path: Path, place: str
) -> None:
    snapshot = hub_cache(folder, tmp_path / "cache", "a" * 40)
    path = snapshot if place == "snapshot" else snapshot.parent.parent

    assert contents(open_source("filesystem", str(path))) == of_folder(folder)


@pytest.mark.parametrize("leads", ["/etc/hostname", "../../../secret", "../../refs/main", "blob"])
def test_a_link_of_a_snapshot_leads_into_its_blobs_and_nowhere_else(
    folder: Path, tmp_path: Path, leads: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "secret").write_text("secret")
    snapshot = hub_cache(folder, tmp_path / "cache", "a" * 40)
    config = snapshot / "config.json"
    config.unlink()
    if leads == "blob":
        (snapshot.parent.parent / "blobs" / "out").symlink_to("/etc/hostname")
        leads = "../../blobs/out"
    config.symlink_to(leads)

    with pytest.raises(ModelError, match="outside of the model's folder"):
        read_checkpoint(open_source("filesystem", str(snapshot)))


def test_a_folder_that_only_looks_like_a_snapshot_keeps_its_links_inside(
    folder: Path, tmp_path: Path
) -> None:
    snapshot = hub_cache(folder, tmp_path / "cache", "a" * 40)
    other = snapshot.parent.parent.rename(tmp_path / "cache" / "mine")

    with pytest.raises(ModelError, match="outside of the model's folder"):
        read_checkpoint(open_source("filesystem", str(other / "snapshots" / ("a" * 40))))


def test_what_the_hub_cache_lacks_is_told_with_how_to_get_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotFound, match=f"hf download {REPO} --revision main"):
        open_source("huggingface", REPO)
    snapshot = hub_cache(folder, tmp_path / "hf-home" / "hub", "a" * 40)
    with pytest.raises(NotFound, match="refs/v2"):
        open_source("huggingface", f"{REPO}@v2")
    with pytest.raises(NotFound, match="has no snapshot bbbb"):
        open_source("huggingface", f"{REPO}@{'b' * 40}")
    (snapshot.parent.parent / "refs" / "main").write_text("../../../etc")
    with pytest.raises(ModelError, match="holds no commit"):
        open_source("huggingface", REPO)


def test_a_token_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "two words")
    with pytest.raises(ConfigError, match="HF_TOKEN holds no token"):
        open_source("huggingface", REPO)
