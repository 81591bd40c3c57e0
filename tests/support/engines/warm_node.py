"""``butterfly-node``, whose engines are forked (see the package)."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from butterfly.node import engine
from butterfly.node.main import main
from tests.support import engines

if __name__ == "__main__":
    engine.PROGRAM = engines.program(os.environ.pop(engines.SOCKET_VARIABLE))
    sys.exit(main())
