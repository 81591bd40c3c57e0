"""diagnose shows what the configured name answers, and each server's answer where they differ."""

import asyncio

from butterfly.admin.checks.finding import Finding, Verdict
from butterfly.admin.checks.network import look_at_names
from butterfly.admin.checks.situation import Situation
from butterfly.admin.node_http import node_at
from butterfly.config import load_config
from tests.support.dns_script import answered, dns_script
from tests.support.dns_server import DnsServer, dns_server, srv

NAME = "_butterfly._tcp.example.com"


def findings(*servers: object) -> list[Finding]:
    flags = {
        "cluster.cluster_name": "c",
        "cluster.discovery_method": "dns",
        "cluster.quorum_size": 2,
        "discovery.dns_name": NAME,
        "discovery.dns_servers": [str(server) for server in servers],
        "model.source_type": "filesystem",
        "model.source_path": "/models/m",
        "security.insecure": True,
    }
    config = load_config(None, environ={}, flags=flags)
    return list(look_at_names(Situation(config, node_at("http://127.0.0.1:1"))))


def seen(*servers: DnsServer) -> list[tuple[Verdict, str]]:
    return [(each.verdict, each.seen) for each in findings(*(s.address for s in servers))]


def test_servers_that_agree_make_one_line() -> None:
    with dns_server(srv(NAME, "a.test", 1)) as one, dns_server(srv(NAME, "a.test", 1)) as two:
        assert seen(one, two) == [(Verdict.PASS, "a.test:1")]


def test_servers_that_differ_are_shown_one_by_one() -> None:
    with dns_server(srv(NAME, "a.test", 1)) as one, dns_server() as two:
        assert seen(one, two) == [
            (Verdict.WARN, "a.test:1"),
            (Verdict.WARN, "the name has no records"),
        ]


async def test_servers_that_give_no_answer_fail() -> None:
    async with (
        dns_script(lambda question: [answered(question, "REFUSED")]) as one,
        dns_script(lambda question: [answered(question, "REFUSED")]) as two,
    ):
        for servers in ([one], [one, two]):
            found = await asyncio.to_thread(findings, *servers)
            assert [each.verdict for each in found] == [Verdict.FAIL] * len(servers)
            assert all("REFUSED" in each.seen for each in found)
