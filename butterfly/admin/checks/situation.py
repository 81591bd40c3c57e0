"""What the checks know at the start: the configuration, whom to ask, and the model's size."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from butterfly.admin.node_http import NodeHttp
from butterfly.admin.status_view import members_of
from butterfly_core.errors import ButterflyError

if TYPE_CHECKING:
    from butterfly.config import NodeConfig
    from butterfly_core.model import ModelSpec

MEMBERS_ASKED_MAX = 64
MEMBER_SECONDS_MAX = 2.0


@dataclass
class Situation:
    """Shared by all checks, which run side by side."""

    config: "NodeConfig | None"
    node: NodeHttp
    """The node of this machine, or the one named by --url; it need not run."""
    _model: "ModelSpec | ButterflyError | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def known(self) -> "NodeConfig":
        """The configuration, for the checks that are only run when there is one."""
        if self.config is None:
            raise ValueError("this check needs a configuration")
        return self.config

    def model(self) -> "ModelSpec":
        """The model's sizes, read from the source once. Raises ModelError, SourceError."""
        with self._lock:
            if self._model is None:
                self._model = self._read_model()
        if isinstance(self._model, ButterflyError):
            raise self._model
        return self._model

    def model_bytes(self) -> int | None:
        """None when the source cannot be read: the check of the source says why."""
        try:
            return self.model().total_bytes
        except ButterflyError:
            return None

    def _read_model(self) -> "ModelSpec | ButterflyError":
        from butterfly.admin.model_reading import read_model

        try:
            return read_model(self.known.model)
        except ButterflyError as error:
            return error

    def statuses(self) -> Sequence[tuple[NodeHttp, Mapping[str, Any]]]:
        """Each member that can be asked, with its /status; empty when no node runs here."""
        try:
            status = self.node.status()
        except ButterflyError:
            return ()
        found = [(self.node, status)]
        for member in members_of(status)[:MEMBERS_ASKED_MAX]:
            known = member.get("node_id") == status.get("node_id") or not member.get("alive", True)
            if known or not member.get("http_address"):
                continue
            peer = self.node.at(str(member["http_address"])).within(MEMBER_SECONDS_MAX)
            try:
                told = peer.status()
            except ButterflyError:
                continue
            if told.get("node_id") == member.get("node_id"):  # else it is a loopback address
                found.append((peer, told))
        return found
