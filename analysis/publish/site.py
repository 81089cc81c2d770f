"""Builds the site: executed notebooks, documents and the API reference as HTML that needs no network and no server."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from analysis.paper.figure_index import EXPLORER, write_index
from analysis.publish.site_check import site_problems
from analysis.scales.scale import Scale, load_scale

MARKER = ".tla-site"
FRONT = "small"  # the scale of natural images whose figures are committed: the site opens with them
_EXPLORER_PLACE = "<!-- explorer -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_SOURCE = re.compile(r'(<(?:iframe|img)[^>]*?\ssrc=")([^":#]+)(")')


class SiteError(RuntimeError):
    """The site was not built; the message lists the warnings, broken links or remote resources. The old one is kept."""


def build_site(root: Path | str, scale: str, target: Path | str) -> Path:
    """Build the site of a scale from what is there: nothing is trained and no notebook is executed.

    Parameters
    ----------
    root : Path or str
        Root of the project: its ``docs``, ``notebooks`` and ``figures/<scale>`` are read.
    scale : str
    target : Path or str
        Folder of the site. A site that is there is replaced once the new one is complete.

    Returns
    -------
    Path
        The target; its ``index.html`` opens in a browser without a network.

    Raises
    ------
    SiteError
        If Sphinx warns, a link leads nowhere, a page would load something from a network, or the target holds
        something else than a site.
    """
    root, target = Path(root).resolve(), Path(target).resolve()
    settings = load_scale(scale, root)
    if target.exists() and not (target / MARKER).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise SiteError(f"{target} is no site that this command made, and is not replaced. Name another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".site-", dir=target.parent) as temporary:
        work, site = Path(temporary), Path(temporary, "site")
        stage_sources(settings, work / "docs")
        _run_sphinx(work / "docs", site, work / "doctrees")
        ignored = shutil.ignore_patterns(".*", "*.failed.ipynb", "*.running.ipynb", "index.html")
        for name in shown_scales(settings):
            folder = site / "figures" / name
            shutil.copytree(root / "figures" / name, folder, ignore=ignored, dirs_exist_ok=True)
            write_index(folder)
        if problems := site_problems(site):
            raise SiteError("the site is not complete:" + "".join(f"\n  {problem}" for problem in problems))
        (site / MARKER).write_text("Made by `tla site`, which replaces this folder as a whole.\n")
        _replace(target, site, old_site=work / "old")
    return target


def _replace(target: Path, site: Path, old_site: Path) -> None:
    has_old = target.exists()
    if has_old:
        target.rename(old_site)
    try:
        site.rename(target)
    except OSError:
        if has_old:
            old_site.rename(target)
        raise


def shown_scales(scale: Scale) -> list[str]:
    """The scales whose figures are on the site, where they are there: that of natural images first, then its own."""
    return [name for name in dict.fromkeys((FRONT, scale.name)) if (scale.root / "figures" / name).is_dir()]


def stage_sources(scale: Scale, folder: Path) -> None:
    """Lay out what Sphinx reads: the documents, and the notebooks with their outputs where they were executed."""
    stage = _Stage(scale, folder)
    shutil.copytree(scale.root / "docs", folder, ignore=shutil.ignore_patterns("_build", ".*"))
    (folder / "_static").mkdir(exist_ok=True)  # for plotly.js
    for path in sorted(folder.rglob("*.md")):
        source = scale.root / "docs" / path.relative_to(folder)
        text = path.read_text(encoding="utf-8").replace(_EXPLORER_PLACE, explorer_frame(scale))
        path.write_text(stage.with_links(text, [source.parent]), encoding="utf-8")
    stage.notebooks()


def explorer_frame(scale: Scale) -> str:
    """The first explorer that there is, for the front page, and the way to one of natural images; else a picture."""
    command = f"tla notebooks explore_embeddings --scale {FRONT}"
    for name in shown_scales(scale):
        if (scale.root / "figures" / name / EXPLORER).is_file():
            address = f"figures/{name}/{EXPLORER}"
            options = 'title="The embedding explorer" width="100%" height="720" loading="lazy"'
            natural = "" if name == FRONT else f" One of natural images is made by <code>{command}</code>."
            link = f'<a href="{address}">The explorer</a> of <code>{name}</code> in a page of its own.'
            return f'<iframe src="{address}" {options}></iframe>\n\n<p>{link}{natural}</p>'
    picture = "![The explorer: four models of CIFAR-10, with an airplane pinned](guide/explorer-light.png)"
    return f"{picture}\n\n*The [explorer](guide/explorer.md): `{command}` makes this one, `make demo` one of digits.*"


class _Stage:
    """Where each file of the project is found on the site."""

    def __init__(self, scale: Scale, folder: Path) -> None:
        self.scale, self.folder = scale, folder
        self.pages = f"figures/{scale.name}/notebooks"

    def notebooks(self) -> None:
        """Stage every notebook, and the page that lists them."""
        copies = self.scale.figures_dir.glob("notebooks/*.ipynb")
        executed_notebooks = {path.stem: path for path in copies if "." not in path.stem}  # NAME.failed.ipynb is none
        committed_notebooks = {path.stem: path for path in (self.scale.root / "notebooks").glob("*.ipynb")}
        for stem, path in sorted((committed_notebooks | executed_notebooks).items()):
            self._notebook(path, stem in executed_notebooks)
        other_stems = sorted(committed_notebooks.keys() - executed_notebooks.keys())
        text = f"# Figures and tables at {self.scale.name}\n\n"
        for name in reversed(shown_scales(self.scale)):
            address, words = f"figures/{name}/index.html", "All" if name == self.scale.name else f"Those of {name}"
            text += f'<p><a href="{address}">{words} on one page</a>, with their files and commands.</p>\n\n'
        if executed_notebooks:
            text += "The notebooks that made them, as they were executed:\n\n" + self._contents(executed_notebooks)
        if other_stems:
            text += (
                f"These notebooks have no outputs here, since they were not executed at this scale."
                f" `make figures SCALE={self.scale.name}` executes all that belong to it,"
                f" and `tla notebooks NAME --scale {self.scale.name}` a single one:\n\n" + self._contents(other_stems)
            )
        (self.folder / "notebooks.md").write_text(text, encoding="utf-8")

    def _contents(self, stems: Sequence[str] | dict[str, Path]) -> str:
        lines = "".join(f"{self.pages}/{stem}\n" for stem in sorted(stems))
        return f"```{{toctree}}\n:maxdepth: 1\n\n{lines}```\n\n"

    def _notebook(self, path: Path, is_executed: bool) -> None:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        # Markdown is written for the committed place of the notebook; outputs may name files beside the executed copy.
        places = [self.scale.root / "notebooks", path.parent, self.scale.root]
        n_plots = 0
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = self.with_links("".join(cell["source"]), places)
            outputs = []
            for output in cell.get("outputs", []) if is_executed else []:
                data = output.get("data", {})
                if "application/vnd.jupyter.widget-view+json" in data:
                    continue  # a progress bar, or a widget that has no kernel here: blank without a network
                if "application/vnd.plotly.v1+json" in data:
                    n_plots += 1
                    figure = data["application/vnd.plotly.v1+json"]
                    output["data"] = {
                        "text/html": self._plot(figure, f"plot-{path.stem}-{n_plots}", first=n_plots == 1)
                    }
                elif "text/html" in data:
                    text = "".join(data["text/html"])
                    data["text/html"] = _SOURCE.sub(lambda match: self._with_source(match, places), text)
                outputs.append(output)
            if cell["cell_type"] == "code":
                cell["outputs"] = outputs
        target = self.folder / self.pages / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(notebook), encoding="utf-8")

    def _plot(self, figure: dict[str, Any], name: str, *, first: bool) -> str:
        """A plotly figure as HTML; the library is stored once, and loaded once by a page that needs it."""
        import plotly
        import plotly.io

        library = self.folder / "_static" / "plotly.min.js"
        if not library.exists():
            shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", library)
        options = {**figure.get("config", {}), "showSendToCloud": False}
        contents = {"data": figure["data"], "layout": figure.get("layout", {})}
        text = plotly.io.to_html(
            contents, config=options, include_plotlyjs=False, full_html=False, div_id=name, validate=False
        )
        return f'<script src="../../../_static/plotly.min.js"></script>{text}' if first else text

    def with_links(self, markdown: str, places: Sequence[Path]) -> str:
        """Markdown whose links to files of the project lead to their place on the site."""

        def replaced(match: re.Match) -> str:
            image, text, link, anchor = match.groups()
            path = _find(link, places)
            # Images among the documents are where Sphinx looks for them.
            found_by_sphinx = image and (path is None or path.is_relative_to(self.scale.root / "docs"))
            address = self._address(path) if path and not found_by_sphinx else None
            if address is None:
                return match[0]
            return f"{image}[{text}]({address}{(anchor or '') if '#' not in address else ''})"

        return _LINK.sub(replaced, markdown)

    def _address(self, path: Path) -> str | None:
        """The address of a file: a document's page, a public module's part of the reference, another file's copy."""
        root = self.scale.root
        if not path.is_relative_to(root):
            return None
        inside = path.relative_to(root)
        if inside.parts[0] == "docs":
            return "/" + inside.relative_to("docs").as_posix()
        if inside.parts[0] == "notebooks" and path.suffix == ".ipynb":
            return f"/{self.pages}/{path.name}"
        module = ".".join(inside.with_suffix("").parts[1:])
        if path.suffix in (".py", "") and module in _public_modules(inside.parts[0]):
            return f"#{inside.parts[0]}-{module}"
        if path.is_dir():
            return None
        copy = self.folder / "files" / inside
        if path.suffix in (".md", ".rst", ".ipynb"):
            copy = copy.with_name(f"{copy.name}.txt")  # Sphinx would look for its page
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        return "/" + copy.relative_to(self.folder).as_posix()

    def _with_source(self, match: re.Match, places: Sequence[Path]) -> str:
        """An embedded file of the scale's folder, seen from the notebook's page."""
        path = _find(html.unescape(match[2]), places)
        if path is None or not path.is_relative_to(self.scale.figures_dir):
            return match[0]
        link = os.path.relpath(path, self.scale.figures_dir / "notebooks")
        return f"{match[1]}{html.escape(Path(link).as_posix())}{match[3]}"


def _find(link: str, places: Sequence[Path]) -> Path | None:
    """The file that a link names, in the first of several places that has it."""
    files = (Path(os.path.normpath(place / link)) for place in places if (place / link).exists())
    return next(files, None)


def _public_modules(package: str) -> set[str]:
    """Modules that the reference has a part for."""
    import analysis
    import tla_core

    packages = {"analysis": analysis, "tla_core": tla_core}
    return set(packages[package]._PUBLIC.values()) if package in packages else set()


def _run_sphinx(source: Path, target: Path, doctrees: Path) -> None:
    if missing_packages := [name for name in ("sphinx", "myst_nb", "furo") if find_spec(name) is None]:
        raise SiteError(
            f"{', '.join(missing_packages)} must be installed: `make env`, or pip install -e '.[pipeline]'."
        )
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going", "-d", doctrees, source, target]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}  # the same documents give the same bytes
    process = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if process.returncode:
        messages = process.stderr.replace(f"{source}{os.sep}", "").strip()
        raise SiteError(f"Sphinx (status {process.returncode}) says:\n{messages}")
