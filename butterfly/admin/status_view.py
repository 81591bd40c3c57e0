"""The answer of /status, as a person reads it. Takes the mapping, returns rich objects and lines.

Everything in it came over the network: missing fields and odd types become ``-``, and text is
never read as markup.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from butterfly.admin.offer_view import offer_line
from butterfly.admin.units import bytes_text, duration_text, plain
from butterfly_core.ids import short

COLOURS = {
    "COLD": "dim",
    "JOINING": "yellow",
    "LOADING": "yellow",
    "READY": "cyan",
    "OPERATIONAL": "green",
}
COLUMNS = ("node", "address", "role", "state", "done", "layers", "device", "weights")
BAR_CELLS = 10
PIPE_WIDTH = 160
"""Columns of output that goes to no terminal: a table in a log is not cut."""


def console() -> Console:
    """Where a command prints: as wide as the terminal, or wide enough for any table."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def members_of(status: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    members = status.get("members")
    if not isinstance(members, list):
        return ()
    return tuple(member for member in members if isinstance(member, dict))


def members_table(status: Mapping[str, Any]) -> Table:
    """One line per member; ``*`` marks the coordinator, ``you`` the node that was asked."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for member in members_of(status):
        table.add_row(*_member_cells(member, status))
    return table


def _member_cells(member: Mapping[str, Any], status: Mapping[str, Any]) -> list[Text]:
    node_id = plain(member.get("node_id"))
    star = " *" if node_id == status.get("coordinator") else ""
    alive = member.get("alive", True)
    state = plain(member.get("state")) if alive else "DEAD"
    return [
        Text(short(node_id) + star, style="bold" if node_id == status.get("node_id") else ""),
        Text(plain(member.get("address"))),
        Text(plain(member.get("role"))),
        Text(_life(state, plain(member.get("phase"))), style=COLOURS.get(state, "red")),
        Text(_done(state, member.get("progress_percent"))),
        Text(plain(member.get("layers"))),
        Text(plain(member.get("device"))),
        Text(moved_text(member)),
    ]


def _life(state: str, phase: str) -> str:
    return state if state in ("OPERATIONAL", "DEAD") else f"{state} {phase}"


def _done(state: str, percent: object) -> str:
    """The share done, with a bar while it grows."""
    told = percent_text(percent)
    if state != "LOADING" or not isinstance(percent, int | float) or told == "-":
        return told
    filled = int(BAR_CELLS * min(max(percent, 0), 100) / 100)
    return f"{'█' * filled}{'░' * (BAR_CELLS - filled)} {told}"


def percent_text(value: object) -> str:
    """Rounded down: only what is whole shows 100 %."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "-"
    return f"{math.floor(value)} %"


def moved_text(member: Mapping[str, Any]) -> str:
    """``12 MiB of 30 MiB (10 MiB cached), 4 MiB/s, 5 s left``."""
    done, total = member.get("bytes_done"), member.get("bytes_total")
    if not isinstance(done, int) or not isinstance(total, int) or total <= 0:
        return "-"
    text = f"{bytes_text(total)}" if done == total else f"{bytes_text(done)} of {bytes_text(total)}"
    kinds = {"cached": member.get("bytes_from_cache"), "from peers": member.get("bytes_from_peers")}
    shares = [
        f"{bytes_text(count)} {kind}"
        for kind, count in kinds.items()
        if isinstance(count, int) and count
    ]
    text += f" ({', '.join(shares)})" if shares else ""
    return text + pace_text(member) if done < total else text


def pace_text(load: Mapping[str, Any]) -> str:
    """``, 4 MiB/s, 5 s left``, as far as it is known."""
    rate, eta = load.get("bytes_per_second"), load.get("eta_seconds")
    told = f", {bytes_text(rate)}/s" if isinstance(rate, int | float) and rate > 0 else ""
    left = f", {duration_text(eta)} left" if isinstance(eta, int | float) and eta > 0 else ""
    return told + left


def summary_lines(status: Mapping[str, Any]) -> list[str]:
    """The cluster, its model, and how the asked node is doing: two or three short lines."""
    state, phase = plain(status.get("state")), plain(status.get("phase"))
    coordinator = short(plain(status.get("coordinator")))
    lines = [
        f"cluster {plain(status.get('cluster_name'))}: {state} ({phase}), "
        f"{plain(status.get('cluster_size'))} nodes, coordinator {coordinator}, "
        f"epoch {plain(status.get('epoch'))}, term {plain(status.get('term'))}",
        _model_line(status),
    ]
    if isinstance(offer := status.get("offer"), dict):
        which = f"offer {plain(offer.get('number'))}, {plain(offer.get('source'))}"
        lines.append(f"{which}: {offer_line(offer)}")
    if state != "OPERATIONAL":
        lines.append(f"progress {percent_text(status.get('progress_percent'))}{_eta(status)}")
    if isinstance(uptime := status.get("uptime_seconds"), int | float):
        lines.append(f"node up {duration_text(uptime)}, version {plain(status.get('version'))}")
    return lines


def _model_line(status: Mapping[str, Any]) -> str:
    model = status.get("model")
    if not isinstance(model, dict):
        return "model: not known yet"
    size = bytes_text(model["total_bytes"]) if isinstance(model.get("total_bytes"), int) else "-"
    root = plain(status.get("merkle_root"))
    proven = f", root {root[:16]} ({_trust(status)})" if root != "-" else ", not proven yet"
    return (
        f"model {plain(model.get('name'))}: {plain(model.get('layer_count'))} layers, "
        f"{size}, from {plain(model.get('source'))}{proven}"
    )


def _trust(status: Mapping[str, Any]) -> str:
    """As the node says it, a key's long name cut short."""
    return re.sub(r"\b([0-9a-f]{16})[0-9a-f]{48}\b", r"\1", plain(status.get("trust")))


def _eta(status: Mapping[str, Any]) -> str:
    eta, load = status.get("eta_seconds"), status.get("load")
    rate = load.get("bytes_per_second") if isinstance(load, dict) else None
    told = f", {bytes_text(rate)}/s" if isinstance(rate, int | float) and rate > 0 else ""
    return f"{told}, about {duration_text(eta)} left" if isinstance(eta, int | float) else told


def error_lines(status: Mapping[str, Any]) -> list[str]:
    """One line per error: code, who, which file or tensor, the story."""
    errors = status.get("errors")
    if not isinstance(errors, list):
        return []
    return [_error_line(error) for error in errors if isinstance(error, dict)]


def _error_line(error: Mapping[str, Any]) -> str:
    where = [short(plain(error["node_id"]))] if error.get("node_id") else []
    where += [plain(error[key]) for key in ("file", "tensor") if error.get(key)]
    place = f" [{', '.join(where)}]" if where else ""
    return f"{plain(error.get('code'))}{place}: {plain(error.get('message'))}"
