"""The document that puts the numbers of a scale beside the paper's, with the verdicts of `analysis.paper.verdicts`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.paper.comparison import claims, groups, level_text, read_numbers
from analysis.paper.verdicts import AGREES, DISAGREES, NOISE, ORDERED, Estimate
from analysis.scales.scale import Scale
from analysis.tables import Column, Table
from tla_core.protocol import accuracy_columns

_TITLES = {
    "table3": "Table 3: distance ratios", "table3-seeds": "Table 3 over seeds", "table4": "Table 4: λ1",
    "table5": "Table 5: the margin", "table6": "Table 6: the layer", "main_accuracy": "Accuracies of the main text",
    "knn": "Accuracy of the 50 nearest training images", "detection": "Detection of misclassified inputs",
    "detection-densities": "The same, with Gaussians of representations of unit length and a covariance for each class",
}  # fmt: skip


def report(folder: Path | str, scale: Scale, reasons: Sequence[dict[str, str]] = ()) -> str:
    """The document, as Markdown: the same sidecars and reasons give the same text.

    Parameters
    ----------
    folder : Path or str
        Such as ``figures/small``.
    scale : Scale
    reasons : sequence of dict
        ``artefact``, ``dataset``, optionally ``quantity`` and ``name``: which disagreements ``reason`` explains.

    Raises
    ------
    ValueError
        If the folder has none of the paper's numbers.
    """
    folder = Path(folder)
    columns_compared = groups(folder, scale)
    if not columns_compared:
        raise ValueError(f"{folder} holds no number that the paper has. Make it: `make figures SCALE={scale.name}`.")
    # What the document is, and how many verdicts of each kind there are.
    counts = [group.verdict(name) for group in columns_compared for name in group.numbers]
    summary = ", ".join(f"{counts.count(v)} {v}" for v in (AGREES, ORDERED, NOISE, DISAGREES) if v in counts)
    parts: list[str] = [
        f"# Reproduction at `{scale.name}`",
        f"Made by `tla reproduction --scale {scale.name}` from the sidecars in `figures/{scale.name}`; do not edit.",
        f"Of {len(counts)} numbers: {summary}. ± is a standard error. A verdict is a two-sided test at 95 %, each by"
        " itself: by the normal distribution where an error is computed (binomial, of a bootstrap, of an area), by"
        " Student's t with n − 1 degrees of freedom where it is that of a mean of n values (classes, seeds, images; of"
        " pairs, where they are paired), which takes 2.26 errors of ten classes and 4.30 of three seeds. **agrees**: no"
        " difference from the paper's number is shown, which a large error alone can bring about; **same ordering"
        " only**: it differs, but at least one other method of its column is apart from it, often UM alone, and each"
        " that is lies on the side where the paper has it; **too close to order**, where none is apart; **disagrees**."
        " The paper's accuracies have binomial errors, its ratios are taken as exact, and its areas under a curve to be"
        " as exact as ours.",
        "## What was trained",
        _settings(scale),
    ]
    # What the paper claims in words.
    if claim_verdicts := claims(folder, columns_compared):
        columns = [
            Column("text", "claim"),
            Column("verdict", "found", align="left"),
            Column("numbers", "", align="left"),
        ]
        basis = "Differences are paired by class (r′) or by image (Fig. 8); ± is the error of a number by itself."
        table = Table(columns, [vars(claim) for claim in claim_verdicts]).to_markdown().strip()
        parts += ["## What the paper claims", basis, table]
    if differences := _differences(folder):
        parts += [
            "## Differences of r′ between methods",
            "Standard errors are over seeds, paired, where there are several; of one training they are of a bootstrap"
            " over the test images of these classes, the same of both methods. In the other sections those of Table 3"
            " are over classes, or over seeds.",
            differences,
        ]
    # Its numbers, table by table.
    for artefact, title in _TITLES.items():
        for dataset in dict.fromkeys(group.dataset for group in columns_compared if group.artefact == artefact):
            parts += [f"## {title}, {dataset}", *_section(columns_compared, artefact, dataset, reasons)]
    # What the paper does not have.
    if strongest := _strongest(folder, scale):
        words = (
            "The worst case for each image of all attacks that were run, APGD with its two losses among them, beside"
            " AutoAttack and PGD with most steps; the paper has no such column, and its attacks say less of a model."
        )
        parts += ["## What the strongest attack leaves", words, strongest]
    if failed_checks := _failed_checks(folder, scale):
        advice = "These accuracies are an illusion in part: believe AutoAttack's, where there is one."
        parts += ["## Failed masking checks", advice, failed_checks]
    return "\n\n".join(parts) + "\n"


def _section(all_groups, artefact: str, dataset: str, reasons) -> Iterator[str]:
    rows, disagreements, percent = [], [], not artefact.startswith("table3")
    groups = [group for group in all_groups if (group.artefact, group.dataset) == (artefact, dataset)]
    yield " ".join(dict.fromkeys(group.basis for group in groups))
    for group in groups:
        for name, number in group.numbers.items():
            verdict = group.verdict(name)
            rows.append({
                "quantity": group.quantity, "name": name, "verdict": verdict,
                ("ours %" if percent else "ours"): number.ours.value, "error": number.ours.error,
                ("paper %" if percent else "paper"): number.paper.value,
            })  # fmt: skip
            if verdict == DISAGREES:
                disagreements.append((group.quantity, name))
    digits = {"digits": 2 if percent else 3, "percent": percent}
    end = " %" if percent else ""
    columns = [
        Column("quantity", ""), Column("name", "", align="left"),
        Column(f"ours{end}", f"ours{end}", error="error", **digits),
        Column(f"paper{end}", f"paper{end}", **digits), Column("verdict", "verdict", align="left"),
    ]  # fmt: skip
    yield Table(columns, rows).to_markdown().strip()
    # Why numbers disagree, as far as it is known.
    lines = []
    for quantity, name in disagreements:
        identity = {"artefact": artefact, "dataset": dataset, "quantity": quantity, "name": name}
        explanations = [
            each["reason"]
            for each in reasons
            if all(identity[field] == each[field] for field in identity if field in each)
        ]
        lines.append((explanations[0] if explanations else "Not looked into.", f"{quantity} {name}"))
    if lines:
        names_by_reason = {
            reason: [number_name for each, number_name in lines if each == reason] for reason, _ in lines
        }
        yield "Where it disagrees:\n\n" + "\n".join(
            f"* {', '.join(names)}: {reason}" for reason, names in names_by_reason.items()
        )


def _settings(scale: Scale) -> str:
    rows = []
    for dataset in scale.datasets:
        config = scale.config(dataset, scale.methods[-1])
        rows.append({
            "dataset": dataset, "data": config.dataset, "network": f"{config.network}, width {config.width:g}",
            "blocks": "-".join(map(str, config.blocks)) or "–", "length": config.length, "attack": str(config.attack),
            "batch": config.batch_size, "seeds": str(len(scale.seeds_of(dataset))),
        })  # fmt: skip
    columns = [Column(key, key, align="left") for key in rows[0]]
    return Table(columns, rows).to_markdown().strip()


def _differences(folder: Path) -> str:
    """Each difference with its standard error, and whether it is more than noise."""
    rows = []
    for record in (read_numbers(folder, "table3-differences") or {"records": []})["records"]:
        for name in (key.removesuffix(" se") for key in record if key.endswith(" se")):
            freedom = record["seeds"] - 1 if record.get("seeds", 1) > 1 else math.inf
            difference = Estimate(record[name], record[f"{name} se"], freedom)
            verdict = "within noise" if not difference.is_not_zero else "higher" if difference.value > 0 else "lower"
            place = f"{record['dataset']}, ε {level_text(record['dataset'], record['eps'])}"
            pair = " − ".join(name.upper().split())
            rows.append({"where": place, "pair": pair, **vars(difference), "verdict": verdict})
    columns = [
        Column("where", ""), Column("pair", "", align="left"),
        Column("value", "r′, difference", digits=4, error="error"), Column("verdict", "the first is", align="left"),
    ]  # fmt: skip
    return Table(columns, rows).to_markdown().strip() if rows else ""


def _strongest(folder: Path, scale: Scale) -> str:
    """Of every method of which it was measured."""
    rows = []
    for dataset in scale.datasets:
        names = accuracy_columns(scale.config(dataset, scale.methods[0]))
        long_pgd = [name for name in names if name.startswith("PGD")][-1]
        for record in (read_numbers(folder, f"main_accuracy-{dataset}") or {"records": []})["records"]:
            if record.get("strongest") is None:
                continue
            row = {"dataset": dataset, "method": record["model"]}
            for name, key in (("pgd", long_pgd), ("strongest", "strongest"), ("autoattack", "AutoAttack")):
                row |= {name: record.get(key), f"{name} se": record.get(f"{key} se")}
            rows.append(row)
    titles = {"pgd": "PGD, %", "strongest": "strongest, %", "autoattack": "AutoAttack, %"}
    columns = [Column("dataset", "dataset", align="left"), Column("method", "method", align="left")]
    columns += [Column(k, title, digits=2, percent=True, error=f"{k} se") for k, title in titles.items()]
    return Table(columns, rows).to_markdown().strip() if rows else ""


def _failed_checks(folder: Path, scale: Scale) -> str:
    """Of the accuracies of the main text, and of Tables 4 to 6."""
    sources = [(dataset, f"main_accuracy-{dataset}", "") for dataset in scale.datasets]
    sources += [(scale.dataset_of("sweeps"), name, f"{_TITLES[name]}, ") for name in ("table4", "table5", "table6")]
    lines = []
    for dataset, stem, title in sources:
        failures = ((read_numbers(folder, stem) or {}).get("more") or {}).get("failed_checks", {})
        for name, messages in failures.items():
            lines += [f"* {dataset}, {title}{name if title else name.upper()}: {line}" for line in messages]
    return "\n".join(lines)
