"""The parts that the node hands in fit the Protocols; the type checker is the judge."""

from butterfly.api.views import NodeView, NoObserver, Observer, Serving, TextModelLike
from butterfly_telemetry.metrics import HttpMetrics, Metrics
from butterfly_text.model import TextModel
from tests.support.api_fakes import CharacterText, FakeNode, FakeServing


def as_text_model(model: TextModel) -> TextModelLike:
    return model


def test_the_parts_fit() -> None:
    observers: list[Observer] = [HttpMetrics(Metrics()), NoObserver()]
    node: NodeView = FakeNode()
    serving: Serving = FakeServing()
    text: TextModelLike = CharacterText()

    assert callable(as_text_model)
    assert all((observers, node, serving, text))
