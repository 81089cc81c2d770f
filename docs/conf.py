"""Sphinx's settings. `make site` lays the notebooks beside these documents and calls Sphinx: analysis/publish/site.py.

Pages load nothing from a network: formulas become MathML, which browsers draw themselves, and no widget is started.
"""

import importlib
import inspect
import re
from pathlib import Path

from docutils.utils.math.latex2mathml import tex2mathml

project = "tla-toolkit"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["files", "results/[!Ra]*"]  # tables beside their README; the page on ablations is shown
default_role = "literal"  # numpydoc's `name` is code
maximum_signature_line_length = 100

html_theme = "furo"
html_title = "tla-toolkit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_math_renderer = "mathml"

nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

autodoc_typehints = "none"  # the docstrings say them, with units and ranges
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True

PACKAGES = ("tla_core", "analysis")


def setup(app) -> None:
    app.connect("autodoc-process-docstring", escape_marks)
    app.connect("builder-inited", lambda app: write_api_pages(Path(app.srcdir) / "api"))
    app.add_html_math_renderer("mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math, None))


def escape_marks(app, what, name, value, options, lines: list[str]) -> None:
    """Docstrings write |x| for an absolute value and axes_ for an attribute: reStructuredText takes both for links."""
    lines[:] = [_escaped(line) for line in lines]


def _escaped(text: str) -> str:
    code_or_mark = r"(``.*?``|`.*?`)|(?<=\w)_(?!\w)|\|"
    return re.sub(code_or_mark, lambda match: match[1] or f"\\{match[0]}", text)


def visit_math(translator, node) -> None:
    """Write a formula as MathML; it has no second visit."""
    from docutils.nodes import SkipNode

    as_block = node.tagname == "math_block"
    translator.body.append(tex2mathml(node.astext(), as_block=as_block))
    raise SkipNode


def write_api_pages(folder: Path) -> None:
    """Write one page for each package: its public objects, by the module that holds them."""
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        package = importlib.import_module(name)
        modules: dict[str, list[str]] = {}
        for public, module in package._PUBLIC.items():
            modules.setdefault(module, []).append(public)
        text = _title(name, "=") + f"{inspect.getdoc(package)}\n\n"
        for module, names in modules.items():
            about = _escaped(inspect.getdoc(importlib.import_module(f"{name}.{module}")) or "")
            text += f".. _{name}-{module}:\n\n" + _title(f"{name}.{module}", "-") + f"{about}\n\n"
            text += "".join(_directive(package, public) for public in names)
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n\n"


def _directive(package, name: str) -> str:
    value = getattr(package, name)
    kind = "function"
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
    # What a class has from ours, such as `plot`, is its own to a reader; what it has from torch's Module is not.
    options = "   :members:\n   :inherited-members: Module\n" if kind == "class" else ""
    return f".. auto{kind}:: {package.__name__}.{name}\n{options}\n"
