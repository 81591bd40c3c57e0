"""The toy model that ships with Butterfly, so that a first run needs no download."""

from pathlib import Path


def demo_model_directory() -> Path:
    """The folder of the toy's checkpoint: config, safetensors shards, tokenizer."""
    return Path(__file__).parent / "toy-llama"
