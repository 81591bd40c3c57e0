"""Faults that no real server shows on order, each from a script: none is taken for an answer."""

import asyncio
from collections.abc import Sequence

import dns.message
import pytest

from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_discovery.dns import DnsSource, Lookup, look_up
from tests.support.dns_script import Script, answered, dns_script

NAME = "_butterfly._tcp.example.com"


def wrong_id(question: bytes) -> bytes:
    return bytes([question[0] ^ 0xFF]) + answered(question, "NXDOMAIN")[1:]


def truncated(question: bytes) -> bytes:
    """Says that there is more over TCP, where nobody listens."""
    answer = bytearray(answered(question))
    answer[2] |= 0x02
    return bytes(answer)


def another_question(question: bytes) -> bytes:
    other = dns.message.make_query("other.example.com", "SRV")
    return question[:2] + answered(other.to_wire(), "NXDOMAIN")[2:]


FAULTS: dict[str, Script] = {
    "SERVFAIL": lambda question: [answered(question, "SERVFAIL")],
    "REFUSED": lambda question: [answered(question, "REFUSED")],
    "FORMERR": lambda question: [answered(question, "FORMERR")],
    "silence": lambda _: [],
    "garbage": lambda _: [b"\xff" * 40, b"", b"x" * 4000],
    "cut short": lambda question: [answered(question, "NXDOMAIN")[:-3]],
    "wrong id": lambda question: [wrong_id(question)],
    "another question": lambda question: [another_question(question)],
    "its own question": lambda question: [question],
    "truncated": lambda question: [truncated(question)],
    "a referral": lambda question: [
        answered(question, authority="com. 60 NS ns.example.net.")
    ],
}  # fmt: skip


async def ask(server: Address, timeout_seconds: float = 0.2) -> frozenset[Address]:
    answer = await look_up(Lookup(NAME, 7000, (server,), timeout_seconds))
    return answer.addresses


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_no_answer(fault: str) -> None:
    async with dns_script(FAULTS[fault]) as server, asyncio.timeout(30):
        with pytest.raises(Unreachable, match="example"):
            await ask(server)


async def test_a_forged_answer_before_the_real_one_is_passed_over() -> None:
    def both(question: bytes) -> Sequence[bytes]:
        return [b"garbage", wrong_id(question), answered(question, "NXDOMAIN")]

    async with dns_script(both) as server:
        assert await ask(server, timeout_seconds=5.0) == frozenset()


@pytest.mark.parametrize(("minimum", "held"), [(1, 5.0), (12, 12.0), (3600, 30.0)])
async def test_nobody_holds_for_the_minimum_of_the_zone(minimum: int, held: float) -> None:
    soa = f"example.com. 900 SOA ns.example.com. admin.example.com. 1 2 3 4 {minimum}"
    for code in ("NXDOMAIN", "NOERROR"):
        async with dns_script(lambda q, c=code: [answered(q, c, authority=soa)]) as server:  # type: ignore[misc]
            answer = await look_up(Lookup(NAME, 7000, (server,), 5.0))
        assert answer.addresses == frozenset()
        assert answer.hold_seconds == held


async def test_aliases_without_end_are_given_up() -> None:
    def onwards(question: bytes) -> Sequence[bytes]:
        asked = dns.message.from_wire(question)
        response = dns.message.make_response(asked)
        name = asked.question[0].name
        following = dns.name.from_text(f"n{len(asked.question[0].name.labels[0])}x", name)
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", following.to_text()))
        return [response.to_wire()]

    async with dns_script(onwards) as server:
        with pytest.raises(Unreachable, match="CNAME"):
            await ask(server, timeout_seconds=5.0)


async def test_an_alias_that_a_server_shows_without_its_end_is_asked_for() -> None:
    def one_by_one(question: bytes) -> Sequence[bytes]:
        asked = dns.message.from_wire(question)
        response = dns.message.make_response(asked)
        name = asked.question[0].name
        line = ("CNAME", "real.example.com.") if "alias" in str(name) else ("SRV", "0 0 7 a.test.")
        response.answer.append(dns.rrset.from_text(name, 60, "IN", *line))
        return [response.to_wire()]

    async with dns_script(one_by_one) as server:
        answer = await look_up(Lookup("alias.example.com", 7000, (server,), 5.0))
    assert answer.addresses == {Address("a.test", 7)}


async def test_a_wait_for_an_answer_can_be_ended_and_begun_again() -> None:
    answers: list[bytes] = []
    async with dns_script(lambda q: [answered(q, "NXDOMAIN")] if answers else []) as server:
        source = DnsSource(NAME, default_port=7000, servers=(server,), timeout_seconds=5.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await source.next()
        answers.append(b"now")
        assert await source.next() == frozenset()
