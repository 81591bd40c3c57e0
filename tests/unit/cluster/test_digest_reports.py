from dataclasses import replace

from butterfly_cluster.digest_reports import Conflict, put_together
from tests.support.clusters import node, spec
from tests.support.offers import STAGES, digests_of

FIRST, SECOND = (digests_of(stage) for stage in STAGES)


def test_reports_that_agree_make_the_digests_of_all_parts() -> None:
    reports = {node(1): FIRST, node(2): SECOND}

    assert put_together({}, reports, STAGES, spec()) == {**FIRST, **SECOND}
    assert put_together(FIRST, {node(2): SECOND}, STAGES, spec()) == {**FIRST, **SECOND}


def test_what_was_known_before_is_expected_of_the_first_who_tells() -> None:
    found = put_together({"layers.0": "known"}, {node(1): FIRST}, STAGES, spec())

    assert found == Conflict("layers.0", node(1), FIRST["layers.0"], "known", None)


def test_a_part_that_two_nodes_hold_must_be_the_same_at_both() -> None:
    tied = replace(spec(), tied=True)
    reports = {node(1): FIRST, node(2): {**SECOND, "embed": "another"}}

    found = put_together({}, reports, STAGES, tied)

    assert found == Conflict("embed", node(2), "another", FIRST["embed"], node(1))


def test_a_part_that_is_left_out_is_a_conflict() -> None:
    rest = {part: digest for part, digest in FIRST.items() if part != "embed"}

    found = put_together({}, {node(1): rest}, STAGES, spec())

    assert found == Conflict("embed", node(1), "none", "none", None)


def test_what_a_node_tells_of_parts_that_it_does_not_hold_counts_for_nothing() -> None:
    reports = {node(1): {**FIRST, "norm": "another"}, node(2): SECOND}

    assert put_together({}, reports, STAGES, spec()) == {**FIRST, **SECOND}
