import json
from dataclasses import replace

import pytest

from butterfly.channel import Progressed
from butterfly.node.local import Local, Problem
from butterfly.node.status import (
    Surroundings,
    admission_problem,
    readiness_view,
    status_view,
)
from butterfly_cluster.commands import ReportFailure, ReportPlanProblem
from butterfly_cluster.duties import Policy
from butterfly_cluster.lifecycle import Node, NodeState, Phase
from butterfly_cluster.node_duties import Facts
from butterfly_cluster.state import ClusterState
from butterfly_core.ids import ClusterId
from butterfly_weights.signed import Signed
from tests.support.clusters import active, committed, joined, loading, node, registered

AROUND = Surroundings(
    me=node(1),
    cluster_name="test",
    cluster_id=ClusterId("c" * 32),
    coordinator=node(2),
    term=3,
    commit_index=9,
    entries_rejected=0,
    leader_changes=1,
    voters=frozenset({node(1)}),
    reports={node(2): {"state": "OPERATIONAL", "phase": "serving", "progress_percent": 100.0}},
    source="filesystem:/m",
    security={"data_plane": "aead"},
    discovery={"method": "static"},
    policy=Policy(quorum_size=2),
    admission_problem=None,
)
SEED_FIELDS = ("state", "phase", "progress_percent", "eta_seconds", "cluster_size", "coordinator")


def local(state: NodeState = NodeState.OPERATIONAL) -> Local:
    return Local(Facts(registered(1)), node=Node(state, 1))


def test_the_seeds_fields_come_first_and_everything_is_json() -> None:
    view = status_view(active(2), local(), AROUND)

    assert tuple(view)[:6] == SEED_FIELDS
    assert json.loads(json.dumps(view)) == view


def test_the_status_shows_the_plan_and_every_member() -> None:
    view = status_view(active(2), local(), AROUND)

    assert (view["layers"], view["cluster_size"], view["coordinator"]) == ("0-1", 2, node(2))
    assert [member["layers"] for member in view["members"]] == ["0-1", "2-3"]
    assert [member["voter"] for member in view["members"]] == [True, False]
    assert view["members"][1]["state"] == "OPERATIONAL"


def test_a_fresh_node_has_a_status_too() -> None:
    around = replace(AROUND, cluster_id=None, coordinator=None, reports={})
    view = status_view(ClusterState(), Local(Facts(registered(1))), around)

    assert view["state"] == "COLD"
    assert view["layers"] is view["model"] is view["merkle_root"] is None
    assert view["members"] == []


def test_errors_name_node_file_and_tensor_wherever_they_happened() -> None:
    state = loading(2)
    failed = ReportFailure(1, node(2), "bad bytes", "VerificationFailed", "a.safetensors", "w")
    state = committed([failed, ReportPlanProblem("too small")], state)
    mine = local(NodeState.LOADING)
    mine.report(Problem("model_source", "403 at the bucket"))

    errors = status_view(state, mine, replace(AROUND, admission_problem="no quorum"))["errors"]

    told = {error["code"]: error for error in errors}
    assert set(told) == {"model_source", "VerificationFailed", "no_plan", "not_admitting"}
    shown = told["VerificationFailed"]
    assert (shown["node_id"], shown["file"], shown["tensor"]) == (node(2), "a.safetensors", "w")


def test_progress_and_eta_follow_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0.0]
    monkeypatch.setattr("butterfly.node.local.time.monotonic", lambda: moments[-1])
    mine = local(NodeState.LOADING)
    assert (mine.progress_percent, mine.eta_seconds) == (0.0, None)

    mine.enter(Phase.LOADING_WEIGHTS)
    for second in range(3):
        moments.append(float(second))
        mine.take_progress(Progressed(1, "loading_weights", 15 * (second + 1), 100, 45, 0))

    assert mine.progress_percent == 45.0
    assert (mine.load.bytes_per_second, mine.eta_seconds) == (15.0, 3.7)
    view = status_view(loading(2), mine, AROUND)
    assert view["load"] == {
        "phase": "loading_weights",
        "bytes_done": 45,
        "bytes_total": 100,
        "bytes_per_second": 15,
        "bytes_from_source": 45,
        "bytes_from_cache": 0,
    }
    assert mine.bytes_from_source == 45
    ready = local(NodeState.READY)
    assert (ready.progress_percent, ready.eta_seconds) == (100.0, 0.0)


def test_a_load_that_is_tried_again_begins_anew() -> None:
    mine = local(NodeState.LOADING)
    mine.take_progress(Progressed(1, "loading_weights", 100, 100, 100, 0))
    assert mine.progress_percent == 100.0

    mine.take_progress(None)
    assert (mine.progress_percent, mine.eta_seconds) == (0.0, None)
    mine.take_progress(Progressed(1, "loading_weights", 9_999, 10_000, 0, 0))
    assert mine.progress_percent == 99.9
    mine.node = Node(NodeState.LOADING, 2)
    assert mine.progress_percent == 0.0


@pytest.mark.parametrize(
    ("root", "signed", "told"),
    [
        (None, None, "pinned, not verified against a publisher"),
        (None, Signed("m", "k"), "pinned, not verified against a publisher"),
        ("m", None, "verified against the manifest"),
        ("m", Signed("m", "k"), "verified against the manifest, signed by k"),
        ("m", Signed("other", "k"), "verified against the manifest"),
        ("m", Signed("m", None), "verified against the manifest; signed, but no trusted_keys"),
    ],
)
def test_the_status_says_against_what_the_weights_were_proven(
    root: str | None, signed: Signed | None, told: str
) -> None:
    state = active(2)
    assert state.model is not None
    mine = local()
    mine.signed = signed
    view = status_view(replace(state, model=replace(state.model, manifest_root=root)), mine, AROUND)

    assert str(view["trust"]).startswith(told)
    assert view["pinned_root"] == state.pinned_root
    unproven = status_view(loading(2), mine, AROUND)
    assert (unproven["trust"], unproven["pinned_root"]) == (None, None)


def test_the_first_check_that_fails_says_what_blocks() -> None:
    def blocking(state: ClusterState, around: Surroundings = AROUND) -> str | None:
        checks = readiness_view(state, local(), around)
        return next((check.name for check in checks if not check.ok), None)

    assert blocking(ClusterState(), replace(AROUND, cluster_id=None)) == "joined"
    assert blocking(ClusterState(), replace(AROUND, coordinator=None)) == "coordinator"
    assert blocking(committed(joined(1))) == "quorum"
    assert blocking(committed(joined(2))) == "model"
    assert blocking(loading(2)) == "weights_validated"
    assert blocking(active(2), replace(AROUND, admission_problem="x")) == "admitting"
    assert blocking(active(2)) is None


def test_requests_are_refused_with_the_reason() -> None:
    state, policy = active(2), Policy(quorum_size=2)

    def problem(joined: bool = True, silent: float = 0.0, quorum: int = 2) -> str | None:
        return admission_problem(
            state,
            replace(policy, quorum_size=quorum),
            joined=joined,
            leader_silent_seconds=silent,
            lease=2.0,
            voters=5,
            voters_heard=2,
        )

    assert problem() is None
    assert "joined" in str(problem(joined=False))
    assert "minority" in str(problem(silent=2.5))
    assert "2 of 5 voters" in str(problem(silent=2.5))
    assert "3 voters run" in str(problem(silent=2.5))
    assert "2 of 3 members" in str(problem(quorum=3))
