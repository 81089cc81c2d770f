"""``python -m analysis.command``: the `tla` command, for torchrun and where scripts are not on the path."""

import sys

from analysis.command.main import main

sys.exit(main())
