"""How a node and its engine read a hub: at one commit, and from a cache without the network."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from butterfly.config import ModelSection
from butterfly.node.local import Local
from butterfly.node.model import ModelReader
from butterfly_cluster.state import ClusterState, ModelPlace
from butterfly_weights.source import SourceOptions, open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.hub_server import REPO, HubServer, hub_cache, hub_server
from tests.support.tiny_models import make_tiny_model


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny", layers=2, tokenizer=True).folder


@pytest.fixture
def hub(model: Path) -> Iterator[HubServer]:
    with hub_server(model) as running:
        yield running


def reader_of(hub: HubServer, tmp_path: Path, path: str = REPO) -> ModelReader:
    section = ModelSection(source_type="huggingface", source_path=path, endpoint_url=hub.url)
    nobody: Any = None  # what this node is has no part in this
    return ModelReader(section, Local(nobody), embedded_root=tmp_path, cache=None)


def move(hub: HubServer, folder: Path) -> tuple[str, str]:
    """The branch goes on to another commit: the one before, and the new one."""
    before = hub.revisions["main"]
    write_checkpoint(folder, Shape())
    hub.revisions["main"] = hub.commit(folder)
    return before, hub.revisions["main"]


async def test_what_was_read_once_is_read_at_that_commit_ever_after(
    hub: HubServer, tmp_path: Path
) -> None:
    reader = reader_of(hub, tmp_path)
    assert await reader.refresh()
    before, _ = move(hub, tmp_path / "other")

    assert await reader.refresh()

    assert reader.found is not None
    assert reader.found.checkpoint.revision == before
    assert reader.engine_source().source_path == f"{REPO}@{before}"
    assert reader.name == "tiny"


async def test_a_node_turns_to_the_commit_that_the_cluster_agreed_on(
    hub: HubServer, tmp_path: Path
) -> None:
    before, now = move(hub, tmp_path / "other")
    hub.revisions["main"], agreed = before, now
    reader = reader_of(hub, tmp_path)
    assert await reader.refresh()

    assert not reader.turn_to(before)
    assert not reader.turn_to("0" * 32)
    assert reader.turn_to(agreed)
    assert not reader.turn_to(agreed)

    assert reader.engine_source().source_path == f"{REPO}@{agreed}"


async def test_a_commit_that_the_configuration_names_is_never_left(
    hub: HubServer, tmp_path: Path
) -> None:
    before, now = move(hub, tmp_path / "other")
    reader = reader_of(hub, tmp_path, f"{REPO}@{before}")
    assert await reader.refresh()

    assert not reader.turn_to(now)


async def test_an_offered_branch_is_followed_at_the_commit_that_was_read_and_not_read_again(
    hub: HubServer, tmp_path: Path
) -> None:
    first = hub.revisions["main"]
    next_one = make_tiny_model(tmp_path / "next", layers=3, tokenizer=True).folder
    offered = hub.revisions["main"] = hub.commit(next_one)
    reader = reader_of(hub, tmp_path, f"{REPO}@{first}")
    assert await reader.refresh()
    place = ModelPlace("huggingface", REPO, hub.url, None, "next")

    found = await reader.read_offered(place)

    assert found.path == f"{REPO}@{offered}"
    pinned = replace(place, source_path=found.path)
    assert reader.offered(place) is reader.offered(pinned) is found
    assert reader.offered(replace(place, source_path=f"{REPO}@{first}")) is None
    assert reader.engine_source().source_path == f"{REPO}@{first}", "what serves is as it was"
    asked = len(hub.asked)
    reader.follow(pinned)
    assert (reader.found, reader.name, reader.place) == (found, "next", pinned)
    assert reader.engine_source() == reader.source_of(pinned, found)
    assert reader.engine_source().source_path == f"{REPO}@{offered}"
    assert len(hub.asked) == asked


async def test_a_place_that_was_not_offered_here_is_read_when_it_is_followed(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    reader = reader_of(hub, tmp_path)
    assert await reader.refresh()

    elsewhere = ClusterState(source=ModelPlace("filesystem", str(model)))
    reader.follow(elsewhere.source)

    assert reader.found is None
    await reader.read_until_known(lambda: elsewhere)
    assert reader.engine_source().source_path == str(model)
    await reader.read_until_known(ClusterState)
    assert reader.engine_source().source_type == "huggingface"


async def test_a_place_that_cannot_be_read_is_left_when_the_cluster_serves_another(
    hub: HubServer, model: Path, tmp_path: Path
) -> None:
    reader = reader_of(hub, tmp_path)
    nowhere = ModelPlace("filesystem", str(tmp_path / "nowhere"))
    state = ClusterState(source=nowhere)
    reading = asyncio.create_task(reader.read_until_known(lambda: state))
    while reader.place != nowhere:
        await asyncio.sleep(0.01)

    state = replace(state, source=ModelPlace("filesystem", str(model)))
    await reading

    assert reader.engine_source().source_path == str(model)


async def test_offline_the_engine_is_told_the_folder_of_the_snapshot(
    hub: HubServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = hub_cache(model, tmp_path / "hf-home" / "hub", hub.revisions["main"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = reader_of(hub, tmp_path)
    assert await reader.refresh()
    told = reader.engine_source()

    assert (told.source_type, told.source_path) == ("filesystem", str(snapshot))
    assert hub.asked == []


def test_the_engine_reads_a_hub_although_it_keeps_transformers_offline(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = SourceOptions(hub_offline=False)
    source = open_source("huggingface", REPO, endpoint_url=hub.url, options=options)

    assert source.exists("config.json")
    source.close()
