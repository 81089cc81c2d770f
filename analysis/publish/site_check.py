"""Checks a folder of HTML pages: links that lead nowhere, and what a browser would load from a network."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself. A link to another site is fetched when a person follows it, and is no problem.
_LOADED = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "embed": ("src",),
    "video": ("src", "poster"), "audio": ("src",), "track": ("src",), "object": ("data",), "image": ("href",),
    "input": ("src",), "link": ("href",), "use": ("href",),
}  # fmt: skip
_REMOTE_STYLE = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])\s*((?:https?:)?//[^"')\s]+)""", re.I)


def site_problems(folder: Path | str) -> list[str]:
    """Every link among the pages that leads nowhere, and every resource that comes from a network.

    Scripts are not run: what a script fetches is not seen.

    Parameters
    ----------
    folder : Path or str
        Root of the site.

    Returns
    -------
    list of str
        Sorted; empty when all is well.
    """
    folder = Path(folder).resolve()
    pages = {path: _Page(path) for path in sorted(folder.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        problems += [f"{name} loads {address}" for address in page.loaded if _is_remote(address)]
        problems += [f"{name} loads {address}" for style in page.styles for address in _REMOTE_STYLE.findall(style)]
        local = [address for address in (*page.loaded, *page.links) if not _is_remote(address)]
        dead_links = [address for address in local if not _leads(path, address, pages, folder)]
        problems += [f"{name}: {address} leads nowhere" for address in dead_links]
    for path in sorted(folder.rglob("*.css")):
        addresses = _REMOTE_STYLE.findall(path.read_text(encoding="utf-8", errors="replace"))
        problems += [f"{path.relative_to(folder).as_posix()} loads {address}" for address in addresses]
    return sorted(set(problems))


class _Page(HTMLParser):
    """What a page loads, links to and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.styles: list[str] = []
        self._in_style = False
        self.feed(path.read_text(encoding="utf-8", errors="replace"))
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        values = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        self.styles.append(values.get("style", ""))
        for key in (*_LOADED.get(tag, ()), *(("xlink:href",) if tag in ("image", "use") else ())):
            if key == "srcset":
                self.loaded += [part.split()[0] for part in values.get(key, "").split(",") if part.strip()]
            elif values.get(key):
                self.loaded.append(values[key].strip())
        if tag in ("a", "area") and "href" in values:
            self.links.append(values["href"].strip())

    def handle_data(self, data) -> None:
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag) -> None:
        self._in_style = False


def _is_remote(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https", "ftp", "ws", "wss")


def _leads(page: Path, address: str, pages: dict[Path, _Page], folder: Path) -> bool:
    parts = urlsplit(address)
    if parts.scheme:
        return parts.scheme in ("data", "mailto", "javascript", "blob", "about")
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if parts.path.startswith("/") or not target.is_relative_to(folder) or not target.is_file():
        return False  # a folder's address works on a server alone
    return not parts.fragment or target not in pages or unquote(parts.fragment) in pages[target].anchors
