"""A node that lost its log: back into its own cluster, or nowhere."""

import pytest

from butterfly_cluster.former_cluster import refusal_of, way_back
from butterfly_cluster.founding_messages import WhoAmI, cluster_id_of
from butterfly_cluster.founding_sight import FoundingSettings, Join, Sight, Wait
from butterfly_core.ids import ClusterId, NodeId

A, B = NodeId("a" * 32), NodeId("b" * 32)
MINE, RECOVERED = cluster_id_of("demo", (A,)), cluster_id_of("demo", (A,), 1)
LONE = FoundingSettings("demo", "x:1", role="coordinator")


def member(address: str, cluster_id: ClusterId | None, generation: int = 0) -> WhoAmI:
    founders = () if cluster_id is None else (A,)
    return WhoAmI(
        A, "demo", address, cluster_id=cluster_id, founders=founders, generation=generation
    )


def way(*answers: WhoAmI, silent: tuple[str, ...] = ()) -> Join | Wait:
    seen = {answer.address: answer for answer in answers} | dict.fromkeys(silent, "no answer")
    return way_back(MINE, LONE, Sight(("a:1", "b:1"), seen))


def test_it_joins_its_cluster_when_one_member_answers() -> None:
    found = way(member("a:1", MINE), silent=("b:1",))

    assert isinstance(found, Join)
    assert (found.cluster_id, found.founders) == (MINE, (A,))


@pytest.mark.parametrize("silent", [(), ("b:1",)])
def test_it_founds_nothing_and_says_how_to_forget(silent: tuple[str, ...]) -> None:
    found = way(member("a:1", None), silent=silent)

    assert isinstance(found, Wait)
    assert found.alarming
    assert MINE in found.reason
    assert "butterfly-node --config FILE --forget" in found.reason


def test_another_cluster_under_the_name_is_named_beside_its_own_and_not_joined() -> None:
    found = way(member("b:1", RECOVERED, 1))

    assert isinstance(found, Wait)
    assert found.alarming
    assert MINE in found.reason
    assert f"b:1 belongs to the cluster {RECOVERED}" in found.reason


def test_its_own_cluster_is_joined_beside_another_one() -> None:
    found = way(member("a:1", MINE), member("b:1", RECOVERED, 1))

    assert isinstance(found, Join)
    assert found.cluster_id == MINE


def test_a_cluster_id_that_does_not_fit_its_founders_is_not_joined() -> None:
    assert isinstance(way(member("a:1", MINE, generation=3)), Wait)


def test_it_promises_nothing_to_anybody() -> None:
    verdict = refusal_of(MINE)

    assert verdict is not None
    assert not verdict.granted
    assert MINE in verdict.reason
    assert refusal_of(None) is None
