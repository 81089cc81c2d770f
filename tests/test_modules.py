"""The examples in docstrings hold, and nothing imports what takes seconds before it is needed."""

import doctest
import importlib
import subprocess
import sys

import pytest
from tiny import REPOSITORY

FILES = [file for folder in ("analysis", "tla_core") for file in sorted((REPOSITORY / folder).rglob("*.py"))]
MODULES = [
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in FILES if ">>>" in file.read_text("utf-8")
]
DRAW = "from analysis.display import *;"
PANEL = "FalseClassPanel(np.zeros((2, 2)), np.ones((1, 2)), np.array([1]), 0, ('a', 'b'))"
LANDSCAPE = "LandscapeDisplay(np.eye(3), np.array([-1.0, 0.0, 1.0]), 1.0)"
ROC = "RocDisplay([RocCurve('AT', np.array([0, 1]), np.array([0, 1]), 0.5)])"
STRIPS = "{'AT': (RetrievalStrip(np.zeros((2, 1, 4, 4)), np.array([0, 1]), np.arange(2), np.zeros(1)),) * 2}"
# Code -> what must not be imported by then.
LIGHT = {
    "import analysis.detection": "torch sklearn scipy faiss",
    "import analysis.retrieval": "torch sklearn faiss",
    f"{DRAW} {PANEL}.plot().figure_.canvas.draw()": "torch openTSNE sklearn umap tla_core.attacks",
    f"{DRAW} {LANDSCAPE}.plot().figure_.canvas.draw()": "torch plotly analysis.landscape",
    f"{DRAW} {ROC}.plot().figure_.canvas.draw()": "torch sklearn scipy faiss",
    f"{DRAW} RetrievalDisplay({STRIPS}, ('a', 'b')).plot().figure_.canvas.draw()": "torch sklearn scipy faiss",
}


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_hold(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("code", LIGHT)
def test_nothing_heavy_is_imported(code):
    """What computes is not needed to draw, and what is slow to import is imported when it is used."""
    script = f"import sys; import numpy as np; {code}; print(sorted(set({LIGHT[code].split()}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]"
