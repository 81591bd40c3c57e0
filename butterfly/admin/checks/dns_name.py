"""What each DNS server answers for the name under which nodes are looked for."""

import asyncio
from collections.abc import Mapping, Sequence

from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.situation import Situation
from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError
from butterfly_discovery.dns import Lookup, look_up, servers_asked
from butterfly_discovery.dns_records import Found

SERVER_SECONDS_MAX = 3.0
ADDRESSES_SHOWN_MAX = 8

Answer = Found | ButterflyError


def look_at_dns_name(situation: Situation) -> Sequence[Finding]:
    """One line when all servers agree, else one for each."""
    known = situation.known
    name, port = known.discovery.dns_name, known.node.bind_address.port
    subject = f"DNS {name}"
    try:
        lookup = Lookup(name, port, known.discovery.dns_servers, SERVER_SECONDS_MAX)
        answers = asyncio.run(_ask_all(lookup))
    except ButterflyError as error:
        return [failed(subject, str(error), "correct [discovery] dns_name and dns_servers")]
    return judge(subject, name, answers)


def judge(subject: str, name: str, answers: Mapping[Address, Answer]) -> Sequence[Finding]:
    """Every server should answer, all of them alike, and name somebody."""
    said = {server: _told(answer) for server, answer in answers.items()}
    if all(isinstance(answer, ButterflyError) for answer in answers.values()):
        fix = f"check the DNS servers: dig @SERVER {name} SRV"
        return [failed(f"{subject} at {server}", told, fix) for server, told in said.items()]
    if len(set(said.values())) > 1:
        fix = f"compare: dig @SERVER {name} SRV; nodes that see different lists do not found"
        return [warned(f"{subject} at {server}", told, fix) for server, told in said.items()]
    answer, told = next(iter(answers.values())), next(iter(said.values()))
    if not isinstance(answer, Found) or not answer.addresses or answer.skipped:
        return [warned(subject, told, f"correct the records in the zone: dig {name} SRV")]
    return [passed(subject, told)]


def _told(answer: Answer) -> str:
    if isinstance(answer, ButterflyError):
        return str(answer)
    shown = _listed(sorted(map(str, answer.addresses))) or "the name has no records"
    skipped = _listed(answer.skipped)
    return f"{shown}; nobody can dial {skipped}" if skipped else shown


def _listed(names: Sequence[str]) -> str:
    more = len(names) - ADDRESSES_SHOWN_MAX
    shown = ", ".join(names[:ADDRESSES_SHOWN_MAX])
    return f"{shown} and {more} more" if more > 0 else shown


async def _ask_all(lookup: Lookup) -> dict[Address, Answer]:
    servers = await servers_asked(lookup)
    async with asyncio.TaskGroup() as tasks:
        asked = {server: tasks.create_task(_ask(lookup, server)) for server in servers}
    return {server: task.result() for server, task in asked.items()}


async def _ask(lookup: Lookup, server: Address) -> Answer:
    try:
        return await look_up(
            Lookup(lookup.name, lookup.default_port, (server,), lookup.timeout_seconds)
        )
    except ButterflyError as error:
        return error
