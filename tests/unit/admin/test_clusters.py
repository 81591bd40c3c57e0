"""What diagnose says of the clusters that it meets."""

from butterfly.admin.checks.clusters import judge
from butterfly.admin.checks.finding import Verdict
from butterfly_core.address import Address
from butterfly_core.errors import Unreachable

ONE, TWO, THREE = (Address(f"10.0.0.{number}", 7000) for number in (1, 2, 3))


def introduced(cluster_id: str | None) -> dict[str, object]:
    return {"cluster_id": cluster_id, "members": {"n1": "x", "n2": "y"}, "voters": ["n1"]}


def test_one_cluster_passes_with_its_size() -> None:
    (finding,) = judge("ours", {ONE: introduced("a"), TWO: Unreachable("it is off")})

    assert finding.verdict is Verdict.PASS
    assert finding.seen == "a: 2 members, 1 voters; answers at 10.0.0.1:7000"


def test_two_clusters_fail_and_it_is_said_which_is_which() -> None:
    found = judge("ours", {ONE: introduced("a"), TWO: introduced("b"), THREE: introduced("a")})

    assert [finding.verdict for finding in found] == [Verdict.FAIL, Verdict.FAIL]
    assert [finding.name for finding in found] == ["cluster a", "cluster b"]
    assert "10.0.0.1:7000, 10.0.0.3:7000" in found[0].seen
    assert all("--forget" in finding.fix for finding in found)


def test_no_cluster_yet_is_a_warning() -> None:
    (finding,) = judge("ours", {ONE: introduced(None)})

    assert finding.verdict is Verdict.WARN
