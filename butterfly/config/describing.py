"""Prints the configuration in effect as TOML, with where each value came from."""

import json

from butterfly.config.schema import SECTIONS, NodeConfig, keys_of

_CONTENT_HIDDEN = frozenset(
    {
        "cluster_secret_file",
        "private_key_file",
        "api_keys_file",
        "consul_token_file",
        "consul_key_file",
    }
)


def describe(config: NodeConfig) -> str:
    """TOML that loads to the same configuration; comments say where each value came from.

    Secrets cannot appear: the configuration holds the names of files, never what is in them.
    """
    sections = (_section(config, name) for name in SECTIONS)
    return "\n\n".join(sections) + "\n"


def _section(config: NodeConfig, section: str) -> str:
    values = getattr(config, section)
    lines = [
        (_line(key, getattr(values, key)), _comment(config, section, key, values))
        for key in keys_of(section)
    ]
    width = min(48, max(len(line) for line, _ in lines))
    return "\n".join([f"[{section}]", *(f"{line:{width}}  # {note}" for line, note in lines)])


def _line(key: str, value: object) -> str:
    return f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"


def _comment(config: NodeConfig, section: str, key: str, values: object) -> str:
    origin = config.origin(section, key)
    hidden = key in _CONTENT_HIDDEN and getattr(values, key) is not None
    return f"{origin}; its content is not shown" if hidden else origin


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(entry) for entry in value)}]"
    # JSON's escapes are TOML's, except that TOML wants DEL escaped as well.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
