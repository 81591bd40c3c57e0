"""``butterfly-admin manifest create|sign|verify|repin``: the digests a model's bytes must have.

Exit codes: 0 done, or all bytes match; 1 they do not, the signature is not by whom you trust, or
the source or node does not deliver; 2 wrong usage.
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

from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.model_source import parse_model_source
from butterfly.admin.repin import add_repin_arguments, repin
from butterfly.admin.signing import (
    add_sign_arguments,
    add_trust_arguments,
    check,
    sign,
    wants_signature,
)
from butterfly.admin.units import bytes_text
from butterfly_core.errors import ModelError, StorageError

if TYPE_CHECKING:
    from butterfly_weights.manifest import Manifest
    from butterfly_weights.progress import LoadProgress
    from butterfly_weights.proving import Problem
    from butterfly_weights.source import Source

PROBLEMS_SHOWN_MAX = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="create|sign|verify|repin"
    )
    create = actions.add_parser("create", help="hash the model and write its manifest")
    signing = actions.add_parser("sign", help="sign the manifest and the small files")
    verify = actions.add_parser("verify", help="compare the model with its manifest")
    for action in (create, signing, verify):
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
    add_sign_arguments(signing)
    add_trust_arguments(verify)
    add_repin_arguments(
        actions.add_parser("repin", help="let a cluster take new weights of a model unsigned")
    )


def run(arguments: argparse.Namespace) -> int:
    from butterfly.admin.model_reading import open_model

    if arguments.action == "repin":
        return repin(arguments)
    place = parse_model_source(
        arguments.source, endpoint_url=arguments.endpoint_url, region=arguments.region
    )
    source = open_model(place)
    try:
        if arguments.action == "create":
            return _create(source, arguments.output)
        if arguments.action == "sign":
            print(f"{source.describe()} is signed with the {sign(source, arguments)}")
            return EXIT_OK
        return _verify(source, arguments)
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


def _verify(source: "Source", arguments: argparse.Namespace) -> int:
    from butterfly_weights.manifest import parse_manifest
    from butterfly_weights.proving import verify_source

    if wants_signature(arguments) and arguments.manifest:
        raise UsageError("a signature is of the manifest beside the model: leave --manifest out")
    raw = _read_manifest(source, arguments.manifest)
    manifest = parse_manifest(raw)
    signed = None if arguments.manifest else _signed_by(source, raw, arguments)
    with _progress("comparing") as on_progress:
        problems = verify_source(source, manifest, on_progress=on_progress)
    if arguments.json:
        report = {
            "root": manifest.root,
            "signed": signed,
            "problems": [asdict(problem) for problem in problems],
        }
        json.dump(report, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif problems:
        _print_problems(source, problems)
    else:
        print(f"{source.describe()} matches its manifest: {_sizes(manifest)}")
        print(f"root {manifest.root}")
        print(f"signed {signed}" if signed else "not signed")
    return EXIT_FAILED if problems else EXIT_OK


def _signed_by(source: "Source", manifest: bytes, arguments: argparse.Namespace) -> str | None:
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.manifest import MANIFEST_NAME
    from butterfly_weights.signed import read_signature

    bundle = read_signature(source)
    if bundle is None and not wants_signature(arguments):
        return None
    small_files = read_checkpoint(source, with_manifest=False).small_files
    return check(arguments, bundle, {MANIFEST_NAME: manifest, **small_files})


def _read_manifest(source: "Source", path: Path | None) -> bytes:
    from butterfly_weights.errors import NotFound
    from butterfly_weights.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME

    try:
        if path is not None:
            return _read_file(path, MANIFEST_BYTES_MAX)
        return source.read_small(MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX)
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
