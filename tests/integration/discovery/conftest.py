"""One Consul for all tests of this folder; each of them finds it running, and empty."""

from collections.abc import Iterator

import pytest

from tests.support.consul_server import ConsulAgent, consul_agent


@pytest.fixture(scope="session")
def shared_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    with consul_agent(tmp_path_factory.mktemp("consul"), clusters=("test", "other")) as agent:
        yield agent


@pytest.fixture
def consul(shared_consul: ConsulAgent) -> ConsulAgent:
    if shared_consul.process is None:
        shared_consul.start()
    shared_consul.forget_all()
    return shared_consul
