"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

RunDir = Annotated[Path, arg(metavar="RUN", help="Run folder, such as runs/mini/mnist/tla/seed0.")]
ScaleName = Annotated[str, arg(help="mini, or another scale of workflow/scales.")]
