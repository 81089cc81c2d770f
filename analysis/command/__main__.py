"""``python -m analysis.command``: the `tla` command, for torchrun and where scripts are not on the path."""

import os
import sys

from analysis.command.main import main

if os.environ.get("RANK", "0") != "0":  # with torchrun, one process speaks for all
    sys.stdout = open(os.devnull, "w")
sys.exit(main())
