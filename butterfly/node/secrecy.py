"""Shows as a problem of the node that its secret or certificates cannot be used, or end soon."""

from butterfly.node.local import Local, Problem
from butterfly_wire.watching import LOOK_SECONDS, CredentialWatch

SECRET_PROBLEM = "secret"


async def watch_credentials(
    watch: CredentialWatch | None, local: Local, *, every_seconds: float = LOOK_SECONDS
) -> None:
    """Take changed files while the node runs, until cancelled; without files return at once."""
    if watch is None:
        return

    def tell() -> None:
        if watch.problem is None:
            local.solved(SECRET_PROBLEM)
        else:
            local.report(Problem(SECRET_PROBLEM, watch.problem))

    tell()
    await watch.run(tell, every_seconds=every_seconds)
