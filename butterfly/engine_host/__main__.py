"""``python -m butterfly.engine_host --fd N --settings JSON``: started by the node process only."""

import sys

from butterfly.engine_host.main import main

sys.exit(main())
