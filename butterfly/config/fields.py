"""What every section of the configuration is made with: its base, and how addresses are read."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from butterfly_core.address import Address, parse_address


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


def read_address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text: host:port, as 10.0.1.10:7000")
    return parse_address(value)


def read_addresses(value: object) -> tuple[Address, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError('must be a list of addresses, as ["10.0.1.10:7000", "10.0.1.11:7000"]')
    return tuple(dict.fromkeys(read_address(entry) for entry in value))


def read_paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list | tuple) or not all(
        isinstance(entry, str | Path) and str(entry) for entry in value
    ):
        raise ValueError('must be a list of files, as ["/etc/butterfly/publisher.pub"]')
    return tuple(dict.fromkeys(Path(entry) for entry in value))
