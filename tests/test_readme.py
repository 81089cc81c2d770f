"""What the README and the documents promise: their code runs, and their links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_four_lines_analyse_a_model_that_is_not_ours(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert len(code.strip().splitlines()) == 4
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=3).eval()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(72, 3, 32, 32), dtype=np.uint8)
    names = {"model": model, "images": images, "labels": np.arange(72) % 3}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["reps"].features.shape == (72, 512) and names["reps"].adv_features is not None
    assert (tmp_path / "class0.png").stat().st_size > 5_000


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_are_there(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_the_readme_names_commands_that_there_are():
    from analysis.command.main import commands

    named = set(re.findall(r"^    tla (\w+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
    assert named == set(commands([]))


def test_documents_are_true_about_the_modules():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in ("tla_core", "analysis"):
        modules = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
        assert not {name for name in modules if f"`{name}`" not in text}
