"""``butterfly-admin manifest create|verify``: the digests that a model's bytes must have.

Exit codes: 0 created, or all bytes match; 1 they do not, or the source does not deliver;
2 wrong usage.
"""

import argparse
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from butterfly.admin.exits import EXIT_FAILED, EXIT_OK
from butterfly.admin.model_source import parse_model_source
from butterfly.admin.units import bytes_text
from butterfly_core.errors import ModelError, StorageError

if TYPE_CHECKING:
    from butterfly_weights.manifest import Manifest
    from butterfly_weights.progress import LoadProgress
    from butterfly_weights.proving import Problem
    from butterfly_weights.source import Source

PROBLEMS_SHOWN_MAX = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="create|verify")
    create = actions.add_parser("create", help="hash the model and write its manifest")
    verify = actions.add_parser("verify", help="compare the model with its manifest")
    for action in (create, verify):
        action.add_argument(
            "source",
            metavar="SOURCE",
            help="a folder, s3://bucket/path, a folder's URL, or hf://org/name@revision",
        )
        action.add_argument("--endpoint-url", metavar="URL", help="S3-compatible server, or hub")
        action.add_argument("--region", help="the bucket's region")
    create.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write there, and not beside the model as butterfly.manifest.json",
    )
    verify.add_argument(
        "--manifest", type=Path, metavar="FILE", help="compare with this, not with that of SOURCE"
    )
    verify.add_argument("--json", action="store_true", help="print what differs as JSON")


def run(arguments: argparse.Namespace) -> int:
    from butterfly.admin.model_reading import open_model

    place = parse_model_source(
        arguments.source, endpoint_url=arguments.endpoint_url, region=arguments.region
    )
    source = open_model(place)
    try:
        if arguments.action == "create":
            return _create(source, arguments.output)
        return _verify(source, arguments.manifest, as_json=arguments.json)
    finally:
        source.close()


def _create(source: "Source", output: Path | None) -> int:
    from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
    from butterfly_weights.proving import create_manifest, write_manifest

    with _progress("hashing") as on_progress:
        manifest = create_manifest(source, on_progress=on_progress)
    if output is None:
        write_manifest(source, manifest)
    else:
        write_whole(output, encode_manifest(manifest))
    print(f"{output or f'{source.describe()}/{MANIFEST_NAME}'}: {_sizes(manifest)}")
    print(f"root {manifest.root}")
    return EXIT_OK


def _verify(source: "Source", path: Path | None, *, as_json: bool) -> int:
    from butterfly_weights.proving import verify_source

    manifest = _read_manifest(source, path)
    with _progress("comparing") as on_progress:
        problems = verify_source(source, manifest, on_progress=on_progress)
    if as_json:
        report = {"root": manifest.root, "problems": [asdict(problem) for problem in problems]}
        json.dump(report, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif problems:
        _print_problems(source, problems)
    else:
        print(f"{source.describe()} matches its manifest: {_sizes(manifest)}")
        print(f"root {manifest.root}")
    return EXIT_FAILED if problems else EXIT_OK


def _read_manifest(source: "Source", path: Path | None) -> "Manifest":
    from butterfly_weights.errors import NotFound
    from butterfly_weights.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, parse_manifest

    try:
        if path is not None:
            return parse_manifest(_read_file(path, MANIFEST_BYTES_MAX))
        return parse_manifest(source.read_small(MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX))
    except NotFound as error:
        raise ModelError(
            f"{source.describe()} has no {MANIFEST_NAME}; make one from bytes you trust with "
            "butterfly-admin manifest create, or name one with --manifest"
        ) from error


def _read_file(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(bytes_max)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from error


def _print_problems(source: "Source", problems: "Sequence[Problem]") -> None:
    tensors = {problem.tensor for problem in problems if problem.tensor}
    for problem in problems[:PROBLEMS_SHOWN_MAX]:
        print(problem.text)
        if problem.expected and problem.seen:
            print(f"    expected {problem.expected}\n    seen     {problem.seen}")
    if len(problems) > PROBLEMS_SHOWN_MAX:
        print(f"… and {len(problems) - PROBLEMS_SHOWN_MAX} more (all of them with --json)")
    print(
        f"{source.describe()} does NOT match: {len(problems)} differences in {len(tensors)} "
        "tensors; restore these objects, or make a new manifest if the change was meant"
    )


def _sizes(manifest: "Manifest") -> str:
    return (
        f"{manifest.layer_count} layers, {len(manifest.tensors)} tensors, "
        f"{bytes_text(manifest.total_bytes)}"
    )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises StorageError."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def _progress(what: str) -> "Iterator[Callable[[LoadProgress], None]]":
    """A bar on standard error, when a person is there to see it."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    with Progress(
        *columns,
        TransferSpeedColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=None)

        def show(now: "LoadProgress") -> None:
            progress.update(task, completed=now.bytes_done, total=now.bytes_total)

        yield show
