"""Who is where by the configured source, and whether all of them are of one cluster."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.situation import Situation
from butterfly_core.address import Address, parse_address
from butterfly_core.errors import ButterflyError, InvalidValue
from butterfly_core.ids import node_id_from_bytes

SOURCE_SECONDS_MAX = 10.0
ASKED_MAX = 64
SUBJECT = "cluster"


def look_at_clusters(situation: Situation) -> Sequence[Finding]:
    """Asks every address that the source names; two clusters under one name are told apart."""
    from butterfly.admin.checks.whoami import introductions

    method = situation.known.cluster.discovery_method
    try:
        named = _named(situation)
    except (ButterflyError, TimeoutError) as error:
        told = str(error) or f"no answer within {SOURCE_SECONDS_MAX:.0f} s"
        return [failed(f"discovery {method}", told, "correct [discovery], or mend the source")]
    try:
        answers = asyncio.run(introductions(situation.known, named[:ASKED_MAX]))
    except ButterflyError as error:
        return [failed(SUBJECT, str(error), "correct [security]")]
    source = passed(f"discovery {method}", f"names {len(named)} addresses")
    return [source, *judge(situation.known.cluster.cluster_name, answers)]


def judge(
    name: str, answers: Mapping[Address, Mapping[str, Any] | ButterflyError]
) -> Sequence[Finding]:
    """One line for each cluster that was met."""
    clusters: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for address, answer in sorted(answers.items()):
        if not isinstance(answer, ButterflyError) and answer.get("cluster_id"):
            clusters.setdefault(str(answer["cluster_id"]), []).append((str(address), answer))
    if not clusters:
        return [warned(SUBJECT, "no node that answers belongs to a cluster yet", "start them")]
    lines = {cluster: _told(met) for cluster, met in sorted(clusters.items())}
    if len(clusters) == 1:
        ((cluster, told),) = lines.items()
        return [passed(SUBJECT, f"{cluster}: {told}")]
    fix = (
        f"there are {len(clusters)} clusters under the name {name!r} and they never merge: decide "
        "which one stays; stop the nodes of the others and start each with --forget"
    )
    return [failed(f"{SUBJECT} {cluster}", told, fix) for cluster, told in lines.items()]


def _told(met: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    members = {str(node) for _, answer in met for node in dict(answer.get("members") or {})}
    voters = {str(voter) for _, answer in met for voter in answer.get("voters") or ()}
    at = ", ".join(address for address, _ in met)
    return f"{len(members)} members, {len(voters)} voters; answers at {at}"


def _named(situation: Situation) -> list[Address]:
    """What the source names. Raises ButterflyError, TimeoutError."""
    config = situation.known
    if config.cluster.discovery_method == "multicast":
        return _heard_by_the_node(situation)
    from butterfly.sources import source_of

    source = source_of(config, node_id_from_bytes(secrets.token_bytes(16)))

    async def ask() -> frozenset[Address]:
        async with asyncio.timeout(SOURCE_SECONDS_MAX):
            return await source.next()

    return sorted(asyncio.run(ask()))


def _heard_by_the_node(situation: Situation) -> list[Address]:
    """By the node that runs here: to listen without announcing would not tell who hears it."""
    told = situation.node.status().get("discovery")
    addresses = told.get("addresses") if isinstance(told, Mapping) else None
    try:
        return sorted(parse_address(str(address)) for address in addresses or ())
    except InvalidValue:
        return []
