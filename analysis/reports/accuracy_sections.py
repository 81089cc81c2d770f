"""The sections of the page on accuracies: summary, accuracies, checklist, curve."""

from typing import Any

from analysis.display.lines import LinesDisplay
from analysis.reports.contents import Contents
from analysis.reports.markup import number, percent, section, table, text
from analysis.reports.pictures import chart
from analysis.reports.trust import NO_PROOF
from tla_core.attack_config import AttackConfig, format_number

_STRONGEST = "withstood all of these"
_SHOWN_REASONS = 3


def eps_text(eps: float, norm: str) -> str:
    """Such as 8/255 in the L∞ norm."""
    return f"{format_number(eps)} ({'L∞' if norm == 'linf' else 'L2'})"


def lights(contents: Contents) -> str:
    """The first lines of the page: may the robust accuracies be believed?"""
    lines = []
    for each in contents.models:
        trust = each.trust
        reasons = " ".join(text(reason) for reason in trust.reasons[:_SHOWN_REASONS])
        n_left = len(trust.reasons) - _SHOWN_REASONS
        reasons += f" And {n_left} more: see the checklist." if n_left > 0 else ""
        lines.append(
            f'<div class="light {trust.light}"><b>{text(each.name)}: {text(trust.sentence)}</b> {reasons}</div>'
        )
    return "".join(lines)


def summary(contents: Contents, numbers: dict[str, Any]) -> str:
    """A card for each model with the three numbers that matter."""
    cards = []
    for each in contents.models:
        values = numbers["models"][each.name]["summary"]
        lines = [
            ("clean accuracy", percent(values["clean"]), percent(values["clean_error"])),
            ("strongest robust accuracy", percent(values["strongest"]), percent(values["strongest_error"])),
            ("r′ under attack", number(values["r_prime"]), number(values["r_prime_error"])),
        ]
        rows = "".join(
            f'<dt>{name}</dt><dd class="big">{value} <small>± {error}</small></dd>' for name, value, error in lines
        )
        cards.append(f'<div class="card"><h3>{text(each.name)}</h3><dl>{rows}</dl></div>')
    about = (
        "Three numbers for each model: the share of images that it classifies correctly; the share that it still does"
        " after every attack here that took all images; and r′, how far the attacked images of a class lie from its"
        " clean ones, in units of the class's own spread: 1 means that they stay where they were. ± is one standard"
        " error, of the choice of images; that of r′ by the bootstrap. They cannot say that a stronger attack would not"
        " find more."
    )
    return section("summary", "Summary", about, f'<div class="cards">{"".join(cards)}</div>')


def accuracies(contents: Contents, numbers: dict[str, Any]) -> str:
    """Attacks by models, with the number of images where it is a part."""
    models = numbers["models"]
    names = list(dict.fromkeys(name for model in models.values() for name in model["accuracies"]))
    parts = [model["accuracies"]["AutoAttack"] for model in models.values() if "AutoAttack" in model["accuracies"]]
    on_a_part = any(each["images"] < len(contents.data) for each in parts)
    last = ["strongest", "AutoAttack"] if on_a_part else ["AutoAttack", "strongest"]
    names = [name for name in names if name not in last] + last
    rows = []
    for name in names:
        cells = [model["accuracies"].get(name) for model in models.values()]
        if any(cells):
            label = {"strongest": _STRONGEST, "AutoAttack": "AutoAttack" + ", on a part" * on_a_part}.get(name, name)
            rows.append([text(label), *(_accuracy(cell, len(contents.data)) for cell in cells)])
    settings = {
        name: column["settings"] for model in models.values() for name, column in model["accuracies"].items()
        if column["settings"] and "steps" in column["settings"]
    }  # fmt: skip
    lines = "; ".join(f"{text(name)}: {text(AttackConfig(**each))}" for name, each in settings.items())
    head = ["left of all images", *(text(name) for name in models)]
    ball = eps_text(contents.attack.eps, contents.attack.norm)
    about = (
        f"Correctly classified images, clean and under attacks of eps {ball},"
        " ± one standard error of the choice of images; correct under an attack means correct without it too, and under"
        " the worst of its restarts. It cannot show what other attacks, other eps or another training would give."
    )
    body = table(head, rows) + f'<p class="quiet">{lines}. The C&amp;W attack ascends the margin.</p>'
    gaps = [f"{text(each.name)}: {text(line)}" for each in contents.models for line in each.accuracies.evaluation.gaps]
    body += "".join(f'<p class="care">{line}</p>' for line in gaps)
    return section("accuracies", "Accuracies", about, body)


def _accuracy(column: dict[str, Any] | None, n: int) -> str:
    if column is None:
        return "–"
    part = "" if column["images"] == n else f"<br><span class='quiet'>of {column['images']} images</span>"
    return percent(column["accuracy"], column["standard_error"]) + part


def checklist(contents: Contents) -> str:
    """One table for each model: what is asked, whether it holds, what was seen."""
    about = (
        'Signs that an attack fails for another reason than robustness, as <a href="https://arxiv.org/abs/1902.06705">'
        'Carlini et al. 2019</a> list them and <a href="https://arxiv.org/abs/2106.09947">Pintor et al. 2022</a> call'
        " them indicators of attack failure (I1 to I6), on samples of the images. One that fails means that the robust"
        f" accuracy is not to be believed as it stands. All passed: {NO_PROOF[0].lower()}{NO_PROOF[1:]}"
    )
    parts = []
    for each in contents.models:
        rows = [
            [text(verdict.question), f'<span class="{verdict.status.replace(" ", "-")}">{text(verdict.status)}</span>',
             text(verdict.words), text(verdict.source)]
            for verdict in each.trust.checklist
        ]  # fmt: skip
        parts.append(table(["asked", "answer", "seen", "asked by"], rows, caption=text(each.name), css="text answers"))
    return section("trust", "May these accuracies be trusted?", about, "".join(parts))


def curve(contents: Contents, numbers: dict[str, Any]) -> str:
    """Accuracy against eps."""
    known = {name: model["curve"] for name, model in numbers["models"].items() if len(model["curve"]) > 1}
    about = (
        "Accuracy under the same attack (PGD-20) at other eps, its steps in proportion, ± one standard error of"
        " the choice of images. It must fall, and to nothing in the end: what an attack with so much room leaves is a"
        " sign of a failing attack. It cannot show what a stronger attack leaves."
    )
    if not known:
        return section("curve", "Accuracy and eps", about, "<p>Left out, see below.</p>")
    first = next(iter(known.values()))
    display = LinesDisplay(
        {name: [100 * level["accuracy"] for level in levels] for name, levels in known.items()},
        [format_number(level["eps"]) for level in first],
        errors={name: [100 * level["standard_error"] for level in levels] for name, levels in known.items()},
        quantity="accuracy, %", along="eps",
    )  # fmt: skip
    body = chart(display, f"Accuracy of {', '.join(known)} against eps")
    body += f'<p class="quiet">Of {first[0]["images"]} images. The levels are evenly spaced.</p>'
    return section("curve", "Accuracy and eps", about, body)
