"""One page that shows a scale's figures and tables, with what made them: ``index.html``, beside them."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

from analysis.scales.manifest import EXPECTED, Sidecar, made_by, read_sidecars

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --faint: #57606a; --line: #d0d7de; --page: #fff; --box: #f6f8fa;
  --link: #0757b8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --faint: #9aa4af; --line: #3d444d; --page: #0f1318;
  --box: #171c23; --link: #6cb0ff; --bad: #ff8a80; } }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); }
a { color: var(--link); }
nav a { display: inline-block; margin-right: 0.9rem; }
section { margin-top: 2rem; border-top: 1px solid var(--line); }
h2 { font-size: 1.2rem; margin: 1rem 0 0.5rem; }
h2 code { font-size: 0.85rem; font-weight: normal; color: var(--faint); }
figure { margin: 0; }
figure img { display: block; max-width: min(100%, 60rem); background: #fff; }
figcaption { margin: 0.6rem 0; max-width: 56rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.made { color: var(--faint); margin: 0.3rem 0; }
.made code { padding: 0.1rem 0.4rem; border-radius: 4px; color: var(--text); background: var(--box); }
.bad { color: var(--bad); }
"""
# Where the notebook explore_embeddings leaves the page of the embedding explorer.
EXPLORER = "explorer.html"
_ENDINGS = {
    ".pdf": "PDF", ".svg": "SVG", ".png": "PNG", ".csv": "CSV", ".tex": "LaTeX", ".md": "Markdown", ".html": "HTML",
    ".safetensors": "drawing",
}  # fmt: skip
_TABLE_TAGS = ("table", "thead", "tbody", "tr", "th", "td", "b")


def write_index(scale_dir: Path | str) -> Path:
    """Write ``index.html`` into a folder of figures: every figure and table, its caption, files and command.

    The page loads nothing but the images beside it. All text is escaped. The same folder gives the same bytes.

    Parameters
    ----------
    scale_dir : Path or str
        Such as ``figures/mini``.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    """
    from tla_core.checkpoint import write_atomic

    folder = Path(scale_dir)
    sidecars = read_sidecars(folder)
    title = f"Figures and tables at {html.escape(folder.resolve().name)}"
    artefacts = {artefact for sidecar in sidecars for artefact in sidecar.artefacts}
    missing = [artefact for artefact in EXPECTED if artefact not in artefacts]
    menu = "".join(f'<a href="#{quote(s.stem)}">{html.escape(_title(s))}</a>' for s in sidecars)
    if (folder / EXPLORER).is_file():
        menu += f'<a href="{EXPLORER}">Explorer</a>'
    body = "".join(_section(sidecar, folder) for sidecar in sidecars)
    if missing:
        lines = "".join(f"<li>{title_of((name,))}: {html.escape(made_by(name, folder))}</li>" for name in missing)
        body += f"<section><h2>Not made yet</h2><ul>{lines}</ul></section>"
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><h1>{title}</h1><nav>{menu}</nav>\n{body}</body></html>\n"
    )
    write_atomic(folder / "index.html", text.encode())
    return folder / "index.html"


def title_of(artefacts: tuple[str, ...]) -> str:
    """What a person calls artefacts that are shown together: "Figures 1–3", "Table 3", "Detection"."""
    match = re.fullmatch(r"(fig|table)(\d+)", artefacts[0])
    if not match:
        names = {"main_accuracy": "Accuracy", "knn": "Nearest neighbours", "detection": "Detection"}
        return " and ".join(names[artefact] for artefact in artefacts)
    word = {"fig": "Figure", "table": "Table"}[match[1]]
    last = artefacts[-1].removeprefix(match[1])
    return f"{word} {match[2]}" if len(artefacts) == 1 else f"{word}s {match[2]}–{last}"


def _title(sidecar: Sidecar) -> str:
    """The title of its artefacts, with the rest of its name: "Accuracy (mnist)" of ``main_accuracy_mnist``."""
    if not sidecar.artefacts:
        return sidecar.stem
    first, last = sidecar.artefacts[0], sidecar.artefacts[-1]
    starts = (f"{first}_and_{last}", f"{first}_{last.removeprefix('fig').removeprefix('table')}", first)
    start = next(start for start in starts if sidecar.stem.startswith(start))
    rest = sidecar.stem.removeprefix(start).strip("-_").replace("_", " ")
    return f"{title_of(sidecar.artefacts)} ({rest})" if rest else title_of(sidecar.artefacts)


def _section(sidecar: Sidecar, folder: Path) -> str:
    title, anchor = _title(sidecar), html.escape(sidecar.stem)
    problems = [f"{name} {problem}" for name in sidecar.files if (problem := sidecar.problem(folder, name))]
    problems += [sidecar.fault] if sidecar.fault else []
    warnings = "".join(f'<p class="bad">{html.escape(problem)}</p>' for problem in problems)
    images = "".join(
        f'<img src="{quote(name)}" alt="{html.escape(f"{title}. {sidecar.caption}")}" loading="lazy">'
        for name in sorted(sidecar.files)
        if name.endswith(".png") and (folder / name).is_file()
    )
    tables = "".join(
        f'<div class="scroll">{safe_table((folder / name).read_text(encoding="utf-8", errors="replace"))}</div>'
        for name in sorted(sidecar.files)
        if name.endswith(".html") and (folder / name).is_file()
    )
    command_line = f'<p class="made">Made by <code>{html.escape(sidecar.command)}</code></p>' if sidecar.command else ""
    return (
        f'<section id="{anchor}"><h2>{html.escape(title)} <code>{html.escape(sidecar.stem)}</code></h2>'
        f"{warnings}<figure>{images}{tables}<figcaption>{html.escape(sidecar.caption)}</figcaption></figure>"
        f'<p class="made">{" · ".join(_links(sidecar, folder))}</p>'
        f"{command_line}</section>\n"
    )


def _links(sidecar: Sidecar, folder: Path) -> list[str]:
    """Links to the files that are there: in their formats, the sidecar, and the executed notebook."""
    order = list(_ENDINGS)
    names = [name for name in sidecar.files if (folder / name).is_file()]
    names.sort(key=lambda name: (order.index(end) if (end := Path(name).suffix) in order else len(order), name))
    links = [(name, _ENDINGS.get(Path(name).suffix, name)) for name in names]
    links.append((f"{sidecar.stem}.json", "numbers and provenance"))
    if match := re.match(r"tla notebooks ([\w.-]+)", sidecar.command):
        for ending, text in ((".html", "notebook"), (".ipynb", "notebook file")):
            if (folder / "notebooks" / f"{match[1]}{ending}").is_file():
                links.append((f"notebooks/{match[1]}{ending}", text))
    return [f'<a href="{quote(target)}">{html.escape(text)}</a>' for target, text in links]


def safe_table(text: str) -> str:
    """A table rebuilt from its HTML with table tags alone, without attributes or its caption, every text escaped."""
    parser = _TableParser()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


class _TableParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipping = False

    def handle_starttag(self, tag, attrs) -> None:
        self._skipping = self._skipping or tag in ("caption", "script", "style")
        if tag in _TABLE_TAGS and not self._skipping:
            self.parts.append(f"<{tag}>")

    def handle_endtag(self, tag) -> None:
        if tag in _TABLE_TAGS and not self._skipping:
            self.parts.append(f"</{tag}>")
        self._skipping = self._skipping and tag not in ("caption", "script", "style")

    def handle_data(self, data) -> None:
        if not self._skipping:
            self.parts.append(html.escape(data))
