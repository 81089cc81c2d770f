"""Writes report.json and report.html from what was measured."""

import re
from pathlib import Path
from typing import Any

from analysis.reports import accuracy_sections as accuracy
from analysis.reports import representation_sections as representation
from analysis.reports.contents import Contents, Report
from analysis.reports.markup import section, table, text
from analysis.reports.numbers import numbers_of
from tla_core.checkpoint import write_atomic, write_json

_FOLDER = Path(__file__).parent


def write_report(contents: Contents, out: Path) -> Report:
    """Write both files, atomically: the numbers first, so that a page never shows what is not in them."""
    numbers = numbers_of(contents)
    page, json_path = out / "report.html", out / "report.json"
    write_json(json_path, numbers)
    write_atomic(page, html_page(contents, numbers).encode())
    return Report(page, json_path, contents.explorer, numbers)


def html_page(contents: Contents, numbers: dict[str, Any]) -> str:
    """The page: it needs no other file and no network, and its content policy forbids to ask for any."""
    data, names = contents.data, [each.name for each in contents.models]
    sections = [
        accuracy.summary(contents, numbers),
        accuracy.accuracies(contents, numbers),
        accuracy.checklist(contents),
        accuracy.curve(contents, numbers),
        representation.destinations(contents),
        representation.depth(contents),
        representation.ratios(contents),
        *([representation.between_models(numbers)] if numbers["cka_between_models"] else []),
        representation.maps(contents),
        representation.retrieval(contents),
        representation.landscapes(contents),
        representation.detection(contents),
        representation.moves(contents, numbers),
        _made(contents, numbers),
    ]
    total = "" if len(data) == data.n_given else f" of {data.n_given:,}"
    size = "×".join(map(str, data.images.shape[1:]))
    head = (
        f"<h1>What an attack does to {text(' · '.join(names))}</h1>"
        f'<p class="quiet">{len(data):,}{total} images of {text(data.source)} ({size}),'
        f" {len(data.class_names)} classes, eps {accuracy.eps_text(contents.attack.eps, contents.attack.norm)}.</p>"
    )
    titles = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(sections))
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title in titles)
    if contents.explorer is not None:
        links += f'<a href="{contents.explorer.name}">Embedding explorer ↗</a>'
    body = head + accuracy.lights(contents) + f"<nav>{links}</nav>" + "".join(sections)
    values = {
        "TITLE": text(f"Report: {', '.join(names)}"),
        "STYLE": (_FOLDER / "page.css").read_text(encoding="utf-8"),
        "BODY": body,
    }
    template = (_FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub("@@([A-Z]+)@@", lambda match: values[match[1]], template)


def _made(contents: Contents, numbers: dict[str, Any]) -> str:
    about = (
        "What is needed to make the same again. Numbers are the same on the same kind of processor with the same number"
        " of threads; elsewhere rounding moves some outcomes. All of them are in report.json."
    )
    origin, data = numbers["made"], numbers["data"]
    environment = origin["environment"]
    machine = f"{environment['device']}, {environment['cpu_capability']}, threads: {environment['threads']}"
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    rows = [
        ["command", f"<code>{text(origin['command'])}</code>"],
        ["images", f"{text(data['source'])}: sha256 <code>{data['checksum']}</code>"],
        *([text(name), f"{model['parameters']:,} parameters, sha256 <code>{model['weights_sha256']}</code>"]
          for name, model in numbers["models"].items()),
        ["examples shown", text(contents.attack)],
        ["representation", text(numbers["layer"])],
        ["versions", text(f"Python {environment['python']}, {versions}")],
        ["machine", text(machine)],
        ["time", f"{origin['seconds']:.0f} s"],
    ]  # fmt: skip
    left = "".join(f"<li>{text(line)}</li>" for line in numbers["left_out"])
    body = table(["", ""], rows, css="text facts") + (f"<h3>Left out</h3><ul>{left}</ul>" if left else "")
    if contents.explorer is not None:
        link = f'<a href="{contents.explorer.name}">the embedding explorer</a>'
        body += f"<p>Beside this page: {link} of these images.</p>"
    return section("made", "How this was made", about, body)
