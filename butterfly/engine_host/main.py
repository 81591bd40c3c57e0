"""The engine process from its first line to its last.

It lives exactly as long as its node: the kernel ends it when the node dies, and it ends by
itself when the channel closes. It runs a little nicer than the node, because elections depend
on the node and nothing depends on the engine within milliseconds.
"""

import argparse
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from types import TracebackType
from typing import Final

from butterfly.channel import EngineSettings, Hello
from butterfly.engine_host.node_channel import BlockingChannel
from butterfly.parent_death import end_with
from butterfly_core.errors import EngineLost

_NICENESS: Final = 5
EXIT_UNEXPECTED: Final = 70

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="butterfly-engine", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the channel's descriptor")
    parser.add_argument("--node", type=int, required=True, help="the process id of the node")
    parser.add_argument("--engine", required=True, help="the name of this run")
    parser.add_argument("--settings", required=True, help="EngineSettings as JSON")
    arguments = parser.parse_args(argv)
    end_with(arguments.node, "the node")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to handle
    threading.excepthook = _end_process
    sys.excepthook = _end_at_once
    os.nice(_NICENESS)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s engine %(levelname)s %(message)s"
    )
    settings = EngineSettings(**json.loads(arguments.settings))
    channel = BlockingChannel(socket.socket(fileno=arguments.fd))
    return _serve(channel, arguments.engine, settings)


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """A thread failed in a way nobody expected: the node must hear of it, not wait for it."""
    trace = (failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    log.critical("a thread ended unexpectedly; this process ends", exc_info=trace)
    os._exit(EXIT_UNEXPECTED)


def _end_at_once(
    kind: type[BaseException], failure: BaseException, trace: TracebackType | None
) -> None:
    """The interpreter's own end takes seconds with torch in it, and the node would kill it."""
    sys.__excepthook__(kind, failure, trace)
    sys.stderr.flush()
    os._exit(1)


def _serve(channel: BlockingChannel, engine: str, settings: EngineSettings) -> int:
    # torch loads here and not before, so that a wrong flag is told at once; and without a look for
    # garbage, of which importing makes none: that took a fifth of its time
    gc.disable()
    import torch

    from butterfly.engine_host.host import Host
    from butterfly_engine.measure import measure, resolve_device

    gc.freeze()
    gc.enable()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    host = Host(channel, settings, device)
    host.send(Hello(engine, measure(device)))
    try:
        host.run()
    except EngineLost as error:
        log.info("stopping: %s", error)
    finally:
        host.close()
    return 0
