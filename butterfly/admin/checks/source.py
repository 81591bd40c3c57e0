"""The model source: can this machine read it, and is a whole model in it?"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from butterfly.admin.checks.finding import Finding, Verdict, failed, passed, worst
from butterfly.admin.checks.situation import Situation
from butterfly.admin.units import bytes_text
from butterfly_core.errors import ButterflyError

if TYPE_CHECKING:
    from butterfly.config import ModelSection


def look_at_source(situation: Situation) -> Sequence[Finding]:
    """Access first, step by step; then the headers of the whole model."""
    model = situation.known.model
    access = _access(model)
    if worst(access) is Verdict.FAIL:
        return access
    return [*access, _checkpoint(situation)]


def _access(model: "ModelSection") -> list[Finding]:
    if model.source_type == "s3":
        from butterfly.admin.checks.s3_access import look_at_s3

        return look_at_s3(model)
    if model.source_type in ("http", "huggingface"):
        from butterfly.admin.checks.web_access import look_at_web

        return look_at_web(model)
    if model.source_type == "filesystem":
        return [folder_access(Path(model.source_path))]
    return []


def folder_access(folder: Path) -> Finding:
    """The folder and every file in it can be read by this user."""
    name = "model folder"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        return failed(name, f"{folder} {what}", "correct [model] source_path, or mount the disk")
    if not os.access(folder, os.R_OK | os.X_OK):
        who = f"user {os.getuid()}"
        return failed(name, f"{folder} is not readable for {who}", f"chmod +rx {folder}")
    files = [path for path in folder.iterdir() if path.is_file()]
    closed = sorted(path.name for path in files if not os.access(path, os.R_OK))
    if closed:
        return failed(
            name, f"not readable: {', '.join(closed[:5])}", f"chmod +r {folder / closed[0]}"
        )
    if not any(path.name == "config.json" for path in files):
        return failed(
            name,
            f"{folder} has no config.json",
            "[model] source_path must be the folder with config.json and *.safetensors",
        )
    return passed(name, f"{folder}, {len(files)} files")


def _checkpoint(situation: Situation) -> Finding:
    try:
        spec = situation.model()
    except ButterflyError as error:
        return failed("model", str(error), "repair or upload the model again, then look once more")
    proof = "with a manifest" if spec.manifest_root else "without a manifest (it will be pinned)"
    return passed(
        "model",
        f"{spec.name}: {spec.architecture}, {spec.layer_count} layers, "
        f"{bytes_text(spec.total_bytes)}, {proof}",
    )
