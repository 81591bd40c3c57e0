"""Opens a model's source and reads its sizes, for ``diagnose`` and ``plan``; no weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from butterfly.demo_model import demo_model_directory

if TYPE_CHECKING:
    from butterfly_core.model import ModelSpec
    from butterfly_weights.source import Source


TRIES_MAX = 3
"""A person waits for the answer, so fewer than a node tries."""


class ModelPlace(Protocol):
    """What ``[model]`` and ``ModelSource`` both tell."""

    @property
    def source_type(self) -> str: ...
    @property
    def source_path(self) -> str: ...
    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def region(self) -> str | None: ...
    @property
    def name(self) -> str | None: ...


def embedded_root() -> Path:
    """The folder of the models that ship with the package."""
    return demo_model_directory().parent


def open_model(place: ModelPlace) -> "Source":
    """Open the source; ``close`` it in the end. Raises ConfigError, SourceError, ModelError."""
    from butterfly_weights.source import SourceOptions, open_source

    return open_source(
        place.source_type,
        place.source_path,
        endpoint_url=place.endpoint_url,
        region=place.region,
        options=SourceOptions(tries_max=TRIES_MAX, embedded_root=embedded_root()),
    )


def read_model(place: ModelPlace) -> "ModelSpec":
    """The model in numbers, from its headers. Raises SourceError, ModelError."""
    from butterfly.config.model_name import name_of_source
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.spec import model_spec

    source = open_model(place)
    try:
        checkpoint = read_checkpoint(source)
    finally:
        source.close()
    return model_spec(
        checkpoint, place.name or name_of_source(place.source_type, place.source_path)
    )
