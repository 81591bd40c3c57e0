"""An offered model, as a person reads of it."""

from collections.abc import Mapping
from typing import Any

from butterfly.admin.units import bytes_text, plain


def offer_line(offer: Mapping[str, Any]) -> str:
    """One line for people: how far an offer is, or how it ended."""
    state = offer.get("state")
    if state == "withdrawn":
        return f"withdrawn, the model that served goes on: {plain(offer.get('reason'))}"
    if state == "switched":
        epoch = plain(offer.get("epoch"))
        return f"switched: {plain(offer.get('name'))} serves from epoch {epoch} on"
    if state == "switching":
        return "all of it is held and proven; answers under way may end"
    if state == "preparing":
        return f"preparing: {_moved(offer)}"
    return "reading its headers"


def _moved(offer: Mapping[str, Any]) -> str:
    done, total = offer.get("bytes_done"), offer.get("bytes_total")
    nodes = f"{plain(offer.get('nodes_prepared'))} of {plain(offer.get('nodes'))} nodes are done"
    if not isinstance(done, int) or not isinstance(total, int) or not total:
        return nodes
    return f"{bytes_text(done)} of {bytes_text(total)} that differ, {nodes}"
