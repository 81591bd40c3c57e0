"""What ``diagnose`` finds out about a web folder and a hub, on servers that run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly.admin.checks.finding import Finding, Verdict
from butterfly.admin.checks.web_access import look_at_web
from butterfly.admin.model_reading import read_model
from butterfly.admin.model_source import parse_model_source
from butterfly.config import ModelSection
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import PLACE, FaultServer, fault_server, refuse, without_ranges
from tests.support.hub_server import REPO, HubServer, hub_server


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "BUTTERFLY_HTTP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", Shape())
    return tmp_path / "model"


@pytest.fixture
def server(folder: Path) -> Iterator[FaultServer]:
    with fault_server(folder) as running:
        yield running


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    with hub_server(folder) as running:
        yield running


def look(source_type: str, path: str, endpoint_url: str | None = None) -> dict[str, Finding]:
    values = {"source_type": source_type, "source_path": path, "endpoint_url": endpoint_url}
    return {f.name: f for f in look_at_web(ModelSection.model_validate(values))}


def test_a_web_folder_that_can_be_read_passes_every_step(server: FaultServer) -> None:
    found = look("http", f"{server.url}/{PLACE}")

    assert [f.verdict for f in found.values()] == [Verdict.PASS, Verdict.PASS]
    assert f"{server.url}/{PLACE}" in found["web folder file"].seen


@pytest.mark.parametrize(
    ("status", "name", "says"),
    [
        (404, "web folder file", "source_path"),
        (401, "web folder access", "BUTTERFLY_HTTP_TOKEN"),
    ],
)
def test_a_web_folder_that_refuses_is_told_with_the_reason(
    server: FaultServer, status: int, name: str, says: str
) -> None:
    server.dress = refuse(status, "x")
    found = look("http", f"{server.url}/{PLACE}")

    assert found[name].verdict is Verdict.FAIL
    assert says in found[name].seen


def test_a_web_server_without_ranges_fails(server: FaultServer) -> None:
    server.add(without_ranges)
    found = look("http", f"{server.url}/{PLACE}")

    assert found["web folder file"].verdict is Verdict.PASS
    assert "does not support ranges" in found["web folder range"].seen


def test_a_hub_is_looked_at_as_a_node_reads_it(hub: HubServer) -> None:
    sound = look("huggingface", REPO, hub.url)
    unknown = look("huggingface", f"{REPO}@v9", hub.url)

    assert [f.verdict for f in sound.values()] == [Verdict.PASS, Verdict.PASS]
    assert "no revision 'v9'" in unknown["hub file"].seen


def test_a_gated_model_fails_with_where_to_ask(hub: HubServer) -> None:
    hub.gated = True

    assert f"{hub.url}/{REPO}" in look("huggingface", REPO, hub.url)["hub access"].seen


def test_a_plan_reads_addresses_as_typed(server: FaultServer, hub: HubServer) -> None:
    web = read_model(parse_model_source(f"{server.url}/{PLACE}"))
    named = read_model(parse_model_source(f"hf://{REPO}@main", endpoint_url=hub.url))

    assert (web.name, named.name) == ("model", "tiny")
    assert web.part_bytes == named.part_bytes
    assert named.revision == hub.revisions["main"]
