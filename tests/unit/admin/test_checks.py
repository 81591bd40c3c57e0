"""Each check of diagnose with a fake at its edge."""

import errno
import os
import shutil
import socket
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from butterfly import __version__
from butterfly.admin.checks import gpu, machine, network, versions, whoami
from butterfly.admin.checks.clock import judge, s3_url
from butterfly.admin.checks.finding import Finding, Verdict
from butterfly.admin.checks.gpu import Gpu
from butterfly.admin.checks.s3_access import explain
from butterfly.admin.checks.situation import Situation
from butterfly.admin.node_http import NodeHttp, node_at
from butterfly.config import NodeConfig, load_config
from butterfly_core.address import Address
from butterfly_core.errors import NotAuthenticated, SourceError, Unreachable
from butterfly_core.model import ModelSpec

PASS, WARN, FAIL = Verdict.PASS, Verdict.WARN, Verdict.FAIL
GIB = 1 << 30
TOY = {"model.source_type": "embedded", "model.source_path": "toy-llama"}
Usage = namedtuple("Usage", "total used free")


def config(**changed: object) -> NodeConfig:
    flags = {
        "cluster.cluster_name": "c",
        "cluster.seed_nodes": ["seed.example:7000"],
        "model.source_type": "filesystem",
        "model.source_path": "/models/m",
        "security.insecure": True,
        **changed,
    }
    return load_config(None, environ={}, flags=flags)


class Known(Situation):
    """A situation whose model has a known size, and whose node does not run."""

    def __init__(self, made: NodeConfig | None, model_bytes: int | None = GIB) -> None:
        super().__init__(made, node_at("http://127.0.0.1:1"))
        self._bytes = model_bytes

    def model(self) -> ModelSpec:
        if self._bytes is None:
            raise SourceError("no such bucket")
        sizes = {"part_bytes": {"embed": self._bytes}, "name": "m", "architecture": "L"}
        numbers = dict.fromkeys(
            ("layer_count", "hidden_size", "vocab_size", "context_length", "kv_bytes_per_token"), 1
        )
        return ModelSpec(**sizes, **numbers, dtype="f", tied=False, revision="")  # type: ignore[arg-type] # a fake

    def statuses(self) -> list[tuple[NodeHttp, dict[str, Any]]]:
        return []


def one(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    assert finding.fix or finding.verdict is PASS, "what is not fine has a fix"
    return finding


# Disk


@pytest.mark.parametrize(
    ("free", "model_bytes", "changed", "verdict"),
    [
        (2 * GIB, GIB, {}, PASS),
        (GIB // 2, GIB, {}, WARN),
        (GIB // 2, GIB, {"model.cache_bytes_max": GIB // 4}, PASS),
        (GIB // 2, GIB, {"model.cache": "off"}, PASS),
        (GIB // 2, GIB, TOY, PASS),
        (GIB // 2, None, {}, PASS),
        (1 << 20, GIB, {"model.cache": "off"}, FAIL),
    ],
)
def test_the_disk_must_hold_what_the_cache_may_grow_to(
    free: int,
    model_bytes: int | None,
    changed: dict[str, object],
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    situation = Known(
        config(**{"node.data_dir": str(tmp_path / "not" / "yet"), **changed}), model_bytes
    )

    assert one(machine.look_at_disk(situation)).verdict is verdict


def test_a_data_folder_that_cannot_be_written_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    finding = one(machine.look_at_disk(Known(config(**{"node.data_dir": str(tmp_path)}))))

    assert finding.verdict is FAIL
    assert "not writable" in finding.seen


# Memory

MEMINFO = "MemTotal:       32 kB\nMemAvailable:   {} kB\n"


@pytest.mark.parametrize(
    ("available_kib", "changed", "verdict"),
    [
        (2 << 20, {}, PASS),
        (1 << 20, {}, WARN),
        (1 << 20, {"cluster.quorum_size": 4}, PASS),
        (2 << 20, {"node.capacity": 0.25}, WARN),
    ],
)
def test_memory_is_held_against_an_even_share(
    available_kib: int,
    changed: dict[str, object],
    verdict: Verdict,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    info = tmp_path / "meminfo"
    info.write_text(MEMINFO.format(available_kib))
    monkeypatch.setattr(machine, "MEMORY_INFO", info)

    assert one(machine.look_at_memory(Known(config(**changed)))).verdict is verdict


def test_memory_without_a_configuration_is_only_told() -> None:
    assert one(machine.look_at_memory(Known(None))).verdict is PASS


# GPU

CARD = Gpu(0, "H100", 70 * GIB, 80 * GIB, "560")


@pytest.mark.parametrize(
    ("found", "device", "verdicts"),
    [
        ("no NVIDIA driver", "auto", [WARN]),
        ("no NVIDIA driver", "cpu", [PASS]),
        ("no NVIDIA driver", "cuda:0", [FAIL]),
        ([], "auto", [WARN]),
        ([CARD], "auto", [PASS]),
        ([CARD], "cuda:1", [FAIL]),
        ([Gpu(0, "H100", GIB, 80 * GIB, "560"), CARD], "cuda:0", [WARN, PASS]),
    ],
)
def test_gpus(
    found: Any, device: str, verdicts: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "read_gpus", lambda: found)
    findings = machine.look_at_gpus(Known(config(**{"node.device": device})))

    assert [finding.verdict for finding in findings] == verdicts


def test_gpus_are_read_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "560",
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(free=70 * GIB, total=80 * GIB),
        "nvmlDeviceGetName": lambda handle: "H100",
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)

    assert gpu.read_gpus() == [CARD]


def test_a_missing_driver_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", missing)

    assert "no NVIDIA driver" in str(gpu.read_gpus())


# Clock


@pytest.mark.parametrize(
    ("offset", "verdict", "seen"),
    [
        (0.4, PASS, "0.4 s behind"),
        (-6, WARN, "6.0 s ahead of"),
        (901, FAIL, "901.0 s behind"),
    ],
)
def test_clock_offsets(offset: float, verdict: Verdict, seen: str) -> None:
    finding = judge("clock", offset)

    assert finding.verdict is verdict
    assert seen in finding.seen


def test_the_clock_is_compared_with_the_server_of_the_bucket() -> None:
    aws = config(**{"model.source_type": "s3", "model.source_path": "s3://bucket/model"})
    own = config(
        **{
            "model.source_type": "s3",
            "model.source_path": "s3://bucket/model",
            "model.endpoint_url": "http://minio:9000",
        }
    )

    assert s3_url(aws.model) == "https://s3.us-east-1.amazonaws.com"
    assert s3_url(own.model) == "http://minio:9000"


# Names, ports, seeds


def test_a_name_that_does_not_resolve_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    finding = one(network.look_at_names(Known(config())))

    assert (finding.name, finding.verdict) == ("DNS seed.example", FAIL)


def test_a_name_shows_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.7", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: [entry, entry])

    assert one(network.look_at_names(Known(config()))).seen == "10.0.0.7"


def test_numbers_need_no_name_server() -> None:
    made = config(**{"cluster.seed_nodes": ["127.0.0.1:7001", "[::1]:7001"]})

    assert one(network.look_at_names(Known(made))).verdict is PASS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("timed out"), "no answer within"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "nothing listens"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), "No route to host"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "does not resolve"),
    ],
)
def test_a_seed_that_cannot_be_dialled_fails_and_says_where_to_look(
    error: OSError, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dial(*args: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", dial)
    finding = one(network.look_at_seeds(Known(config())))

    assert (finding.name, finding.verdict) == ("seed seed.example:7000", FAIL)
    assert expected in finding.seen


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("a" * 32, PASS),
        ("", WARN),
        (NotAuthenticated("another secret"), FAIL),
        (Unreachable("hung up"), FAIL),
    ],
)
def test_a_seed_must_prove_to_be_of_this_cluster(
    answer: Any, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(made: NodeConfig, peer: Address) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *args, **named: ours)
    monkeypatch.setattr(whoami, "ask_who", ask)

    assert one(network.look_at_seeds(Known(config()))).verdict is verdict
    theirs.close()


def test_a_node_does_not_dial_itself() -> None:
    made = config(**{"cluster.seed_nodes": ["127.0.0.1:7000"]})

    assert one(network.look_at_seeds(Known(made))).verdict is PASS


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EADDRINUSE, "held by another program"),
        (errno.EADDRNOTAVAIL, "has no address"),
        (errno.EACCES, "cannot listen"),
    ],
)
def test_a_port_that_cannot_be_used_fails(
    number: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(socket.socket, "bind", bind)
    findings = network.look_at_ports(Known(config()))

    assert all(expected in finding.seen and finding.fix for finding in findings)
    assert [finding.verdict for finding in findings] == [FAIL, FAIL]


# S3


@pytest.mark.parametrize(
    ("step", "code", "verdict", "advice"),
    [
        ("head", "403", FAIL, "s3:GetObject on arn:aws:s3:::bucket/models/llama/*"),
        ("range", "AccessDenied", FAIL, "s3:GetObject"),
        ("list", "AccessDenied", WARN, "s3:ListBucket on arn:aws:s3:::bucket"),
        ("head", "404", FAIL, "source_path"),
        ("head", "NoSuchBucket", FAIL, "source_path"),
        ("range", "InvalidAccessKeyId", FAIL, "AWS_ACCESS_KEY_ID"),
        ("range", "SignatureDoesNotMatch", FAIL, "AWS_SECRET_ACCESS_KEY"),
        ("range", "RequestTimeTooSkewed", FAIL, "timedatectl"),
        ("head", "301", FAIL, "region"),
        ("head", "", FAIL, "log"),
    ],
)
def test_an_s3_error_says_which_permission_or_key_is_missing(
    step: str, code: str, verdict: Verdict, advice: str
) -> None:
    finding = explain(step, code, "bucket", "models/llama/config.json")

    assert finding.verdict is verdict
    assert advice in finding.fix


# Versions


def test_requirements_of_extras_do_not_count() -> None:
    lines = ["torch>=2.11,<2.14", "moto>=5; extra == 'dev'", "???"]

    assert {k: str(v.specifier) for k, v in versions.requirements(lines).items()} == {
        "torch": "<2.14,>=2.11"
    }


@pytest.mark.parametrize(
    ("installed", "verdict"),
    [("2.12.1", PASS), ("2.13.0+cpu", PASS), ("2.14.0", FAIL), ("2.2", FAIL), (None, FAIL)],
)
def test_a_package_outside_its_range_fails_with_the_command_that_mends_it(
    installed: str | None, verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None or name != "torch":
            raise metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.11,<2.14"])
    monkeypatch.setattr(metadata, "version", version)
    found = {finding.name: finding for finding in versions.look_at_versions(Known(None))}

    assert found["torch"].verdict is verdict
    assert "pip install 'torch" in found["torch"].fix or verdict is PASS


def test_members_of_another_version_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        {"node_id": "b" * 32, "version": "9.9", "address": "10.0.0.2:7000"},
        {"node_id": "a" * 32, "version": __version__},
    ]
    monkeypatch.setattr(NodeHttp, "status", lambda node: {"members": members})
    other, same = versions.look_at_versions(Known(None))[-2:]

    assert (other.verdict, same.verdict) == (WARN, PASS)
    assert "9.9 at 10.0.0.2:7000" in other.seen


def test_a_member_whose_address_leads_to_another_node_is_not_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    members = [
        {"node_id": "a", "http_address": "127.0.0.1:1"},
        {"node_id": "b", "http_address": "127.0.0.1:2"},
        {"node_id": "c", "http_address": "127.0.0.1:3"},
        {"node_id": "d", "http_address": "127.0.0.1:4", "alive": False},
    ]
    ids = {"http://127.0.0.1:1": "a", "http://127.0.0.1:2": "b", "http://127.0.0.1:3": "a"}
    monkeypatch.setattr(
        NodeHttp, "status", lambda node: {"node_id": ids[node.url], "members": members}
    )
    situation = Situation(None, node_at("http://127.0.0.1:1"))

    assert [status["node_id"] for _, status in situation.statuses()] == ["a", "b"]
