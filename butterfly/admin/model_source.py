"""Where a model is, from what a person typed: a folder, an address or a built-in name."""

from dataclasses import dataclass
from pathlib import Path

from butterfly.admin.exits import UsageError
from butterfly_weights.addresses import parse_hub_name, plain_url

TOY_MODEL = "toy-llama"
"""The model that ships with the package. It is a toy and is called so wherever it appears."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The ``[model]`` section in short."""

    source_type: str
    source_path: str
    endpoint_url: str | None = None
    region: str | None = None
    name: str | None = None

    @property
    def is_toy(self) -> bool:
        return self.source_type == "embedded" or self.name == TOY_MODEL

    def __str__(self) -> str:
        return self.source_path


def parse_model_source(
    text: str, *, endpoint_url: str | None = None, region: str | None = None
) -> ModelSource:
    """Tell the kind of source from its spelling and the folders at hand. Raises UsageError,
    ConfigError."""
    if text.startswith("s3://"):
        if not text.removeprefix("s3://").strip("/"):
            raise UsageError(f"{text!r} names no bucket; write s3://bucket/path/of/model")
        return ModelSource("s3", text, endpoint_url, region)
    if text.startswith("hf://"):
        parse_hub_name(text)
        return ModelSource("huggingface", text.removeprefix("hf://"), endpoint_url)
    if endpoint_url:
        raise UsageError(f"--endpoint-url is for s3:// and hf:// sources; {text!r} is none")
    if text.startswith(("http://", "https://")):
        return ModelSource("http", plain_url(text, "SOURCE"))
    folder = Path(text).expanduser()
    if folder.is_dir():
        return ModelSource("filesystem", str(folder.resolve()))
    if text == TOY_MODEL:
        return ModelSource("embedded", text)
    raise UsageError(
        f"{text!r} is no folder, no s3://, http(s):// or hf:// address and no built-in model "
        f"(built in: {TOY_MODEL})"
    )
