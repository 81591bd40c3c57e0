"""The only place where the engine meets the wire: a data socket as a pipeline's link."""

import socket

from butterfly.channel import Link
from butterfly_wire.datalink import DataLink

FRAME_BYTES_MAX = 1 << 30


def link_of(message: Link, connected: socket.socket) -> DataLink:
    """The data link over a descriptor that the node process handed in."""
    connected.setblocking(True)
    return DataLink(
        connected,
        message.send_key,
        message.receive_key,
        mode=message.mode,
        frame_bytes_max=FRAME_BYTES_MAX,
    )
