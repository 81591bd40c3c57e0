"""One load by one system, in a process of its own; ``load.py`` starts it.

    python tools/bench/load_system.py SYSTEM FOLDER URL CA_FILE

URL is empty for a local folder. Prints JSON: bytes, seconds, CPU seconds, and by how many bytes
the peak of resident memory rose. Imports and botocore's clients (0.3 s of CPU each, ours too) come
before the clock starts; headers, listings and the manifest are read while it runs. A virtual
machine gives free memory back to its host within seconds, and the first touch of it then costs
more than a load: so as much memory as the hungriest system takes is touched just before.
"""

import json
import mmap
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[2] / "crates_py"))
sys.path.insert(0, str(Path(__file__).parents[2]))

PLACE = "bench/model"
_PIECE_BYTES = 8 << 20
_RAW_THREADS = 8

Load = Callable[[], Any]
"""Brings the model into memory; what it returns is kept until the peak is read."""


def ours(folder: Path, url: str, ca_file: str) -> Load:
    from butterfly_core.layers import all_parts
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.loader import Loader
    from butterfly_weights.source import SourceOptions, open_source
    from butterfly_weights.spec import layer_count_of

    options = SourceOptions(ca_file=Path(ca_file) if ca_file else None)
    if url:
        source = open_source("s3", PLACE, endpoint_url=url, options=options)
    else:
        source = open_source("filesystem", str(folder))

    def load() -> Any:
        checkpoint = read_checkpoint(source)
        if checkpoint.manifest is None:
            raise RuntimeError("the benchmark's model has no manifest: nothing would be compared")
        result = Loader(source, checkpoint).load(all_parts(layer_count_of(checkpoint.config)))
        source.close()
        return result

    return load


def ours_cuda(folder: Path, _url: str, _ca_file: str) -> Load:
    import torch

    from butterfly.engine_host.upload import Uploader
    from butterfly_core.layers import all_parts
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.handing_on import LoadedPart
    from butterfly_weights.loader import Loader
    from butterfly_weights.source import open_source
    from butterfly_weights.spec import layer_count_of

    torch.zeros(1, device="cuda:0")  # the context is made before the clock starts

    def load() -> Any:
        source = open_source("filesystem", str(folder))
        checkpoint = read_checkpoint(source)
        uploader = Uploader(torch.device("cuda:0"))
        parts = all_parts(layer_count_of(checkpoint.config))

        def take(part: LoadedPart) -> None:
            uploader.take(part, "sample", 1)

        Loader(source, checkpoint).load(parts, destination=uploader, on_part=take)
        torch.cuda.synchronize()
        return uploader

    return load


def pcie_limit(folder: Path, _url: str, _ca_file: str) -> Load:
    """As many bytes out of one pinned buffer as the model has."""
    import torch

    total = sum(path.stat().st_size for path in shards(folder))
    pinned = torch.zeros(256 << 20, dtype=torch.uint8, pin_memory=True)
    device = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda:0")

    def load() -> Any:
        for _ in range(-(-total // pinned.nbytes)):
            device.copy_(pinned, non_blocking=True)
        torch.cuda.synchronize()

    return load


def runai(folder: Path, url: str, ca_file: str) -> Load:
    if url:
        os.environ["AWS_ENDPOINT_URL"] = url
        os.environ["RUNAI_STREAMER_S3_ENDPOINT"] = url
        os.environ["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
        if ca_file:
            os.environ["AWS_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"] = ca_file
    from runai_model_streamer import SafetensorsStreamer

    paths = [f"s3://{PLACE}/{path.name}" if url else str(path) for path in shards(folder)]

    def load() -> Any:
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(paths)
            return dict(streamer.get_tensors())

    return load


def boto3_safetensors(folder: Path, url: str, ca_file: str) -> Load:
    import boto3
    from botocore.config import Config

    local = Path(tempfile.mkdtemp())
    mapped = safetensors_mmap(folder, "", "", local)
    config = Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required")
    client = boto3.client("s3", endpoint_url=url, config=config, verify=ca_file or None)

    def load() -> Any:
        bucket, _, prefix = PLACE.partition("/")
        try:
            for path in shards(folder):
                client.download_file(bucket, f"{prefix}/{path.name}", str(local / path.name))
            return mapped()
        finally:
            for path in local.iterdir():
                path.unlink()
            local.rmdir()

    return load


def safetensors_mmap(folder: Path, _url: str, _ca_file: str, local: Path | None = None) -> Load:
    import torch
    from safetensors.torch import load_file

    def load() -> Any:
        tensors = {}
        for path in shards(folder):
            tensors.update(load_file(str((local or folder) / path.name)))
        for tensor in tensors.values():  # mapped pages have not come before they are touched
            tensor.view(-1).view(torch.uint8)[::4096].sum()
        return tensors

    return load


def fastsafetensors(folder: Path, _url: str, _ca_file: str) -> Load:
    from fastsafetensors import fastsafe_open

    def load() -> Any:
        paths = [str(path) for path in shards(folder)]
        with fastsafe_open(paths, nogds=True, device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    return load


def raw_ranges(folder: Path, url: str, ca_file: str) -> Load:
    """The ceiling: range GETs into the final buffer over plain sockets, looked at by nobody."""
    place, base = urlsplit(url), {path.name: path.stat().st_size for path in shards(folder)}
    total = sum(base.values())

    def load() -> Any:
        memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        view, position = memoryview(memory), 0
        ranges: SimpleQueue[tuple[str, int, memoryview]] = SimpleQueue()
        for name, size in base.items():
            for start in range(0, size, _PIECE_BYTES):
                count = min(_PIECE_BYTES, size - start)
                ranges.put((name, start, view[position : position + count]))
                position += count
        context = ssl.create_default_context(cafile=ca_file) if place.scheme == "https" else None

        def work() -> None:
            sock = socket.create_connection((place.hostname or "", place.port or 80))
            if context:
                sock = context.wrap_socket(sock, server_hostname=place.hostname)
            with sock:
                while True:
                    try:
                        name, start, target = ranges.get_nowait()
                    except Empty:
                        return
                    _get(sock, name, start, target)

        threads = [threading.Thread(target=work) for _ in range(_RAW_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return memory

    return load


def _get(sock: socket.socket, name: str, start: int, target: memoryview) -> None:
    last = start + target.nbytes - 1
    sock.sendall(
        f"GET /{PLACE}/{name} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{last}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    head, _, body = head.partition(b"\r\n\r\n")
    if b" 206 " not in head:
        raise RuntimeError(head.decode())
    target[: len(body)] = body
    done = len(body)
    while done < target.nbytes:
        count = sock.recv_into(target[done:])
        if not count:
            raise RuntimeError("closed in the middle")
        done += count


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found else 0


SYSTEMS: dict[str, Callable[[Path, str, str], Load]] = {
    "butterfly": ours,
    "butterfly on CUDA": ours_cuda,
    "PCIe copy limit": pcie_limit,
    "runai-model-streamer": runai,
    "boto3 download + safetensors": boto3_safetensors,
    "safetensors mmap": safetensors_mmap,
    "fastsafetensors": fastsafetensors,
    "raw range GETs, unhashed": raw_ranges,
}


def touch_memory(nbytes: int) -> None:
    """In a process of its own, which ends at once and leaves it free, but backed by the host."""
    program = (
        "import ctypes, mmap\n"
        f"m = mmap.mmap(-1, {nbytes}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "m.madvise(mmap.MADV_HUGEPAGE)\n"
        f"ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(m)), 1, {nbytes})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def main() -> None:
    name, folder, url, ca_file = sys.argv[1:]
    load = SYSTEMS[name](Path(folder), url, ca_file)
    nbytes = sum(path.stat().st_size for path in shards(Path(folder)))
    touch_memory(2 * nbytes)
    before, cpu, started = peak_bytes(), time.process_time(), time.perf_counter()
    kept = load()
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    told = {"bytes": nbytes, "seconds": seconds, "cpu": spent, "peak": peak_bytes() - before}
    print(json.dumps(told), flush=True)
    del kept
    os._exit(0)  # some of them take seconds to end, which is nobody's loading time


if __name__ == "__main__":
    main()
