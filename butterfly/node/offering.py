"""Hands a person's wish for another model to the cluster."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from pydantic import ValidationError

from butterfly.config import ModelSection
from butterfly_cluster.commands import Command
from butterfly_cluster.offer_commands import CallOffOffer, OfferModel
from butterfly_cluster.state import ClusterState, ModelPlace
from butterfly_core.errors import NotServing, RequestError

OFFER_SECONDS: Final = 10.0


class Log(Protocol):
    """What is asked of the replicated log."""

    async def propose(self, command: Command, *, timeout_seconds: float) -> int: ...


def place_of(words: Mapping[str, str]) -> ModelPlace:
    """A place in the words of the ``[model]`` section. Raises RequestError."""
    try:
        section = ModelSection.model_validate(dict(words))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(f"this names no model: {where}: {first['msg']}"[:500]) from None
    if section.source_type == "filesystem" and not section.source_path.startswith("/"):
        raise RequestError(f"the folder {section.source_path!r} is not absolute")
    kind, path = section.source_type, section.source_path
    return ModelPlace(kind, path, section.endpoint_url, section.region, section.name)


async def offer_model(log: Log, state: Callable[[], ClusterState], place: ModelPlace) -> int:
    """Its number, once it is committed. Raises RequestError, NotServing, Unreachable."""
    before = state()
    if before.open_offer is not None:
        raise RequestError(
            f"{before.open_offer.place} is offered already (offer {before.open_offer.number}); "
            "wait for its end: butterfly-admin status"
        )
    if not before.is_active:
        raise NotServing(
            "another model is only taken while one is served: it is loaded beside it",
            phase="assignment",
        )
    number = before.offer.number + 1 if before.offer else 1
    await log.propose(OfferModel(number, place), timeout_seconds=OFFER_SECONDS)
    now = state().offer
    if now is None or now.number != number or (now.spec is None and now.place != place):
        raise RequestError("the cluster did not take the offer: another one came first; try again")
    return number


async def call_off(log: Log, state: Callable[[], ClusterState]) -> int:
    """Withdraw the open offer; its number. Raises RequestError, NotServing, Unreachable."""
    offer = state().open_offer
    if offer is None:
        raise RequestError("no model is offered now; butterfly-admin status shows what was")
    await log.propose(CallOffOffer(offer.number), timeout_seconds=OFFER_SECONDS)
    now = state().offer
    if now is not None and now.number == offer.number and now.switched_epoch:
        raise RequestError(f"too late: offer {offer.number} has taken over; load the old model")
    return offer.number
