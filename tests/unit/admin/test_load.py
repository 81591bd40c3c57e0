"""``butterfly-admin load`` on a node that is made of answers."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from butterfly.admin.main import main
from butterfly.admin.node_http import NodeHttp
from butterfly_core.errors import Unreachable

OFFER = {"number": 4, "source": "s3:s3://models/b", "state": "preparing", "name": "b"}
HALF = {**OFFER, "bytes_done": 512, "bytes_total": 1024, "nodes": 3, "nodes_prepared": 1}
SWITCHED = {**OFFER, "state": "switched", "epoch": 7}
WITHDRAWN = {**OFFER, "state": "withdrawn", "reason": "node 1a2b: no such bucket"}
WORDS = ["load", "s3://models/b", "--url", "127.0.0.1:1"]


class Answers:
    """What the node says to one status after the other, and what it was sent."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.offers: Iterator[Mapping[str, Any] | None] = iter(())
        self.sent: list[tuple[str, Mapping[str, Any]]] = []
        patch.setattr(NodeHttp, "post", lambda _, path, body: self._post(path, body))
        patch.setattr(NodeHttp, "status", lambda _: self._status())
        patch.setattr("butterfly.admin.load.LOOK_SECONDS", 0.0)

    def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.sent.append((path, body))
        return {"offer": 4}

    def _status(self) -> Mapping[str, Any]:
        offer = next(self.offers)
        if offer is None:
            raise Unreachable("for a moment")
        return {"offer": offer}


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def test_a_model_is_offered_in_the_words_of_the_configuration(
    node: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--name", "tiny", "--endpoint-url", "http://127.0.0.1:9", "--region", "eu"]

    assert main([*WORDS, *flags]) == 0

    place = {
        "source_type": "s3",
        "source_path": "s3://models/b",
        "endpoint_url": "http://127.0.0.1:9",
        "region": "eu",
        "name": "tiny",
    }
    assert node.sent == [("/admin/load", place)]
    assert "(offer 4)" in capsys.readouterr().out


def test_progress_is_told_by_bytes_until_the_model_has_taken_over(
    node: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    node.offers = iter([{**OFFER, "state": "reading"}, HALF, None, HALF, SWITCHED])

    assert main([*WORDS, "--wait"]) == 0

    told = capsys.readouterr().out.splitlines()
    assert told[1:] == [
        "reading its headers",
        "preparing: 512 B of 1.00 KiB that differ, 1 of 3 nodes are done",
        "switched: b serves from epoch 7 on",
    ]


def test_a_withdrawn_offer_ends_with_its_reason_and_one(
    node: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    node.offers = iter([WITHDRAWN])

    assert main([*WORDS, "--wait"]) == 1
    assert "withdrawn, the model that served goes on: node 1a2b: no such" in capsys.readouterr().out


def test_another_offer_and_a_time_that_is_up_end_the_waiting(
    node: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    node.offers = iter([{**OFFER, "number": 5}])
    assert main([*WORDS, "--wait"]) == 1
    assert "offer 4 is over, another one came" in capsys.readouterr().err
    assert main([*WORDS, "--wait", "--timeout", "0.0000001"]) == 1
    assert "has not ended in time" in capsys.readouterr().err


def test_an_offer_is_called_off(node: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--call-off", "--url", "127.0.0.1:1"]) == 0
    assert node.sent == [("/admin/call-off-load", {})]
    assert "offer 4 is withdrawn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["load"],
        [*WORDS, "--call-off"],
        ["load", "no-such-folder"],
        [*WORDS, "--timeout", "0"],
        ["load", "hf://a/b", "--region", "x"],
    ],
)
def test_wrong_words_are_told_before_any_node_is_asked(node: Answers, words: list[str]) -> None:
    assert main(words) == 2
    assert node.sent == []
