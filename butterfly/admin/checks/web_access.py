"""A web folder or a hub step by step: is there a model, and does the server deliver ranges?"""

from typing import TYPE_CHECKING

from butterfly.admin.checks.finding import Finding, failed, passed
from butterfly_core.errors import ButterflyError

if TYPE_CHECKING:
    from butterfly.config import ModelSection
    from butterfly_weights.source import Source

PROBE = "config.json"
PROBE_BYTES = 2
_KINDS = {"http": "web folder", "huggingface": "hub"}


def look_at_web(model: "ModelSection") -> list[Finding]:
    """Two findings at most; stops after the first step that cannot work."""
    from butterfly.admin.model_reading import open_model

    name = _KINDS[model.source_type]
    try:
        source = open_model(model)
    except ButterflyError as error:
        return [failed(name, str(error), "correct [model] source_path")]
    try:
        return _steps(source, name)
    finally:
        source.close()


def _steps(source: "Source", name: str) -> list[Finding]:
    from butterfly_weights.errors import AccessDenied, NotFound

    found = []
    try:
        info = source.stat(PROBE)
        found.append(passed(f"{name} file", f"{source.describe()}: {PROBE}, {info.size} bytes"))
        reader = source.reader()
        try:
            reader.read_into(info, 0, [memoryview(bytearray(PROBE_BYTES))], lambda _: None)
        finally:
            reader.close()
    except NotFound as error:
        return [failed(f"{name} file", str(error), "correct [model] source_path")]
    except AccessDenied as error:
        return [failed(f"{name} access", str(error), "give this machine a token that may read it")]
    except ButterflyError as error:
        step = "range" if found else "file"
        fix = "check the server's name, the proxy (HTTPS_PROXY) and its certificate"
        return [*found, failed(f"{name} {step}", str(error), fix)]
    return [*found, passed(f"{name} range", f"{PROBE_BYTES} bytes delivered")]
