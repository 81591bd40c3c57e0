"""A process that hears a multicast group and prints each answer as a line of addresses.

python -m tests.support.multicast_host ME GROUP INTERFACE
"""

import asyncio
import sys

from butterfly_core.address import parse_address
from butterfly_core.errors import Unreachable
from butterfly_discovery.multicast import MulticastSource

KEY = b"0123456789abcdef"


async def main(me: str, group: str, interface: str) -> None:
    source = MulticastSource(
        "lab",
        parse_address(me),
        key=KEY,
        group=parse_address(group),
        interface=interface,
        period_seconds=0.2,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(source.run())
        while True:
            try:
                answer = await source.next()
            except Unreachable:  # the link is down
                await asyncio.sleep(0.05)
                continue
            sys.stdout.write(" ".join(sorted(map(str, answer))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
