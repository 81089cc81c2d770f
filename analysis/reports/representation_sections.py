"""The sections of the page on representations: where examples go, depth, ratios, maps, neighbours, landscapes."""

from typing import Any

import numpy as np

from analysis.display.class_pairs import ClassPairDisplay, ClassPairPanel
from analysis.display.curves import RocDisplay
from analysis.display.false_classes import FalseClassesDisplay, FalseClassPanel
from analysis.display.landscape import LandscapesDisplay
from analysis.display.lines import LinesDisplay
from analysis.display.retrieval import RetrievalDisplay
from analysis.maps import align_maps, align_pair_maps
from analysis.reports.contents import Contents, Findings
from analysis.reports.markup import number, percent, section, table, text
from analysis.reports.measure import landscape_unit
from analysis.reports.pictures import change, chart, maps_figure, photographs, thumbnail

MOST_IN_MATRIX = 20
LEFT_OUT = "<p>Left out: see the end of the page.</p>"
_MEASURES = {
    "r_prime": ("r′", 1.0, None), "r": ("r", 1.0, None), "knn_clean": ("kNN accuracy, clean", None, (0, 1)),
    "knn_adversarial": ("kNN accuracy, attacked", None, (0, 1)), "cka": ("CKA, clean with attacked", None, (0, 1)),
}  # fmt: skip


def represented(contents: Contents) -> list[Findings]:
    return [each for each in contents.models if each.reps is not None]


# Where adversarial examples go ----------------------------------------------------------------------------------------


def destinations(contents: Contents) -> str:
    """A matrix for each model, and the most frequent confusions."""
    about = (
        "What each class's images are taken for after PGD-20: rows are true classes, in percent of their images. It"
        " shows where this attack leads, which is where the loss rises most; it cannot show that another class is out"
        " of reach."
    )
    names, parts = contents.data.class_names, []
    for each in represented(contents):
        counts = each.destinations
        classes = np.flatnonzero(counts.sum(axis=1))
        many = f"<p class='quiet'>{len(classes)} classes: the matrix is in report.json.</p>"
        matrix = _matrix(counts, names, classes) if len(classes) <= MOST_IN_MATRIX else many
        parts.append(f'<div class="matrices"><h3>{text(each.name)}</h3>{matrix}{_confusions(counts, names)}</div>')
    body = f'<div class="panels">{"".join(parts)}</div>' if parts else LEFT_OUT
    return section("destinations", "Where adversarial examples go", about, body)


def _matrix(counts: np.ndarray, names: tuple[str, ...], rows: np.ndarray) -> str:
    columns = np.union1d(rows, np.flatnonzero(counts.sum(axis=0)))[: 2 * MOST_IN_MATRIX]
    head = "".join(f'<th class="turned"><span>{text(names[k])}</span></th>' for k in columns)
    body = ""
    for k in rows:
        shares = counts[k] / counts[k].sum()
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.75 * shares[j]:.2f})'
            f'{";outline:1px solid var(--quiet);outline-offset:-2px" if j == k else ""}">'
            f"{round(100 * shares[j]) if counts[k, j] else ''}</td>"
            for j in columns
        )
        body += f"<tr><th scope='row'>{text(names[k])}</th>{cells}</tr>"
    rest = f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="matrix">{rest}</table></div>'


def _confusions(counts: np.ndarray, names: tuple[str, ...]) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = [place for place in np.argsort(-wrong, axis=None, kind="stable")[:5] if wrong.flat[place]]
    if not order:
        return "<p>No example is mistaken.</p>"
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    lines = [f"{text(names[k])} for {text(names[j])} ({wrong[k, j]} of {counts[k].sum()})" for k, j in pairs]
    return f"<p class='quiet'>Most often {', '.join(lines)}.</p>"


# Depth, and ratios by class -------------------------------------------------------------------------------------------


def depth(contents: Contents) -> str:
    """A chart of each measure, all models in it if they have the same blocks, and otherwise one for each."""
    about = (
        "What the attack does to the representation block by block: r′ (how far attacked images lie from their class,"
        " in units of its spread; 1 is untouched), r (how far they stay from the class that they are taken for), the"
        " accuracy of a vote of the nearest clean images, and linear CKA (how alike clean and attacked are; 1 is the"
        " same up to a turn and a scale). Maps and tokens are averaged over their places, so that what moves within an"
        " image is not seen, and blocks of different networks are not the same place."
    )
    groups: dict[tuple[str, ...], list[Findings]] = {}
    for each in contents.models:
        if each.depth:
            groups.setdefault(_ticks(each), []).append(each)
    parts = []
    for ticks, several in groups.items():
        if len(groups) > 1:
            parts.append(f"<h3>{', '.join(text(each.name) for each in several)}</h3>")
        charts = []
        for key, (name, reference, limits) in _MEASURES.items():
            values = {each.name: [record[key] for record in each.depth] for each in several}
            if any(value is not None for line in values.values() for value in line):
                display = LinesDisplay(values, ticks, title=name, reference=reference, limits=limits)
                charts.append(chart(display, f"{name} at {', '.join(ticks)}"))
        parts.append(f'<div class="panels">{"".join(charts)}</div>')
        parts.append(f'<div class="panels">{"".join(_depth_table(each) for each in several)}</div>')
    return section("depth", "Representations through depth", about, "".join(parts) or LEFT_OUT)


def _ticks(each: Findings) -> tuple[str, ...]:
    """Names of the blocks without what all of them begin with, such as the name of a wrapper, or how maps are read."""
    names = [record["layer"].partition(":")[0] for record in each.depth]
    blocks = [name for name in names if name not in ("penultimate", "logits")]
    outer = {name.partition(".")[0] for name in blocks if "." in name}
    if len(outer) == 1 and len(blocks) > 1 and all("." in name for name in blocks):
        names = [name.removeprefix(f"{next(iter(outer))}.") for name in names]
    return tuple(map(_short, names))


def _short(name: str) -> str:
    return name if len(name) <= 14 else "…" + name[-13:]


def _distinct(names: list[str]) -> list[str]:
    """Names that fit above a panel, which tell the models apart."""
    short = [name if len(name) <= 12 else f"{name[:11]}…" for name in names]
    return [name if short.count(name) == 1 else f"{place}: {name[:9]}" for place, name in enumerate(short, 1)]


def _depth_table(each: Findings) -> str:
    rows = [
        [text(record["layer"]), str(record["units"]), number(record["r_prime"]), number(record["r"]),
         percent(record["knn_clean"]), percent(record["knn_adversarial"]), number(record["cka"])]
        for record in each.depth
    ]  # fmt: skip
    head = ["block", "units", "r′", "r", "kNN clean", "kNN attacked", "CKA"]
    reasons = {reason for record in each.depth for reason in record["reasons"].values()}
    notes = "".join(f"<p class='quiet'>–: {text(reason)}</p>" for reason in sorted(reasons)[:3])
    caption = f"{text(each.name)}, {each.depth[0]['k']} neighbours"
    return f"<div>{table(head, rows, caption=caption)}{notes}</div>"


def ratios(contents: Contents) -> str:
    """r and r' by class, with bootstrap errors."""
    about = (
        "r′: how far a class's attacked images lie from its clean ones; r: how far those mistaken for a class stay from"
        " it. Both in units of the class's spread, in the representation that is classified, with bootstrap standard"
        " errors over the images of a class. A class without such examples, or with one image, has none; ratios of few"
        " images are rough. r′ is estimated for all images that were given, of which an adversarial example's own clean"
        " image is a smaller share."
    )
    several = [each for each in contents.models if each.ratios]
    if not several:
        return section("ratios", "r and r′ by class", about, LEFT_OUT)
    names = contents.data.class_names
    classes = [k for k in range(len(names)) if any(np.isfinite(each.ratios["r_prime_by_class"][k]) for each in several)]
    classes = classes[:MOST_IN_MATRIX]
    charts = []
    for key, name in (("r_prime", "r′"), ("r", "r")) if classes else ():
        display = LinesDisplay(
            {each.name: [each.ratios[f"{key}_by_class"][k] for k in classes] for each in several},
            [_short(names[k]) for k in classes], title=f"{name} by class", joined=False, reference=1.0,
            errors={each.name: [each.ratios[f"{key}_errors"][k] for k in classes] for each in several},
        )  # fmt: skip
        charts.append(chart(display, f"{name} by class of {', '.join(each.name for each in several)}"))
    rows = [
        [text(each.name), number(each.ratios["r_prime"], each.ratios["r_prime_error"]), _or_dash(each.ratios["r"])]
        for each in several
    ]
    body = f'<div class="panels">{"".join(charts)}</div>' + table(["mean over classes", "r′", "r"], rows)
    return section("ratios", "r and r′ by class", about, body)


def _or_dash(value: float) -> str:
    return number(value if np.isfinite(value) else None)


# Maps, neighbours, landscapes, detection ------------------------------------------------------------------------------


def maps(contents: Contents) -> str:
    """Fig. 1 and Fig. 4 of these models."""
    about = (
        "t-SNE maps of clean (grey) and attacked images of one class, embedded together, coloured by what the model"
        " takes them for; and of the pair of classes that is confused most. Who lies beside whom means something;"
        " distances, sizes and places of clusters in a map do not."
    )
    several = [each for each in represented(contents) if each.maps]
    parts, names = [], contents.data.class_names
    short = _distinct([each.name for each in several])
    shares = [f"{each.reps.robust_accuracy:.0%} right" for each in several]
    titles = {each.name: f"{name}\n{share}" for each, name, share in zip(several, short, shares, strict=True)}
    classes = list(several[0].maps) if several else []
    if classes:
        aligned = [align_maps(each.maps, several[0].maps) for each in several]
        rows = [[FalseClassPanel.from_map(one[k], names) for one in aligned] for k in classes]
        display = FalseClassesDisplay(rows, [titles[each.name] for each in several])
        parts.append(maps_figure(display, "Maps of the classes that are mistaken most"))
    pairs = [each for each in several if each.pair is not None]
    if pairs:
        aligned_pairs = align_pair_maps([each.pair for each in pairs], [pairs[0].pair] * len(pairs))
        panels = [ClassPairPanel.from_map(pair, names) for pair in aligned_pairs]
        display = ClassPairDisplay(panels, [titles[each.name] for each in pairs])
        parts.append(maps_figure(display, "Map of the pair of classes that is confused most"))
    return section("maps", "Maps", about, "".join(parts) or LEFT_OUT)


def retrieval(contents: Contents) -> str:
    """The neighbours of the images whose neighbours the attacks spoil most."""
    about = (
        "The clean images nearest to an image, and to the example made from it, in the representation: the cases that"
        " the attacks spoil most, of all models together, so that they are worse than usual; the table has the mean of"
        " all. Neighbours of another class have a red frame."
    )
    several = {each.name: each for each in contents.models if each.retrieval is not None}
    if not several:
        return section("retrieval", "Retrieval: the worst cases", about, LEFT_OUT)
    short = dict(zip(_distinct(list(several)), several.values(), strict=True))
    k = next(iter(several.values())).retrieval.clean.indices.shape[1]
    rows = [
        [text(name), percent(each.retrieval.clean.mean_precision), percent(each.retrieval.adversarial.mean_precision)]
        for name, each in several.items()
    ]
    parts = [table([f"of the {k} nearest, of the right class", "clean", "attacked"], rows)]
    for row in contents.worst:
        display = RetrievalDisplay.from_retrievals(
            {name: each.retrieval for name, each in short.items()}, contents.data.images.numpy(),
            {name: each.reps.adv_images for name, each in short.items()}, row=row,
            class_names=contents.data.class_names,
        )  # fmt: skip
        parts.append(photographs(display, f"Neighbours of image {int(contents.data.rows[row])}, clean and attacked"))
    return section("retrieval", "Retrieval: the worst cases", about, "".join(parts))


def landscapes(contents: Contents) -> str:
    """Fig. 8 of these models."""
    subject = "images that all models classify correctly"
    if not contents.landscape_rows_are_right:
        subject = "the first images (there is none that all models classify correctly)"
    about = (
        f"The loss around {subject}: to the right along the sign of the model's own"
        " gradient, upwards along random signs. A smooth slope is what gradient attacks need; a flat or ragged one is a"
        " sign of masked gradients. Two images and one plane each are no proof of anything."
    )
    several = {each.name: each.landscapes for each in contents.models if each.landscapes}
    if not several:
        return section("landscape", "Loss landscape", about, LEFT_OUT)
    data, rows = contents.data, contents.landscape_rows or [0]
    unit = landscape_unit(contents.attack.eps, contents.attack.norm, data.images[0])
    titled = dict(zip(_distinct(list(several)), several.values(), strict=True))
    display = LandscapesDisplay.from_landscapes(
        titled, [data.class_names[int(data.labels[row])] for row in rows], eps=unit,
        images=[data.images[row].numpy() for row in rows],
    )  # fmt: skip
    random = [text(name) for name, each in several.items() if any(one.params["directions"] == "random" for one in each)]
    body = photographs(display, "Loss landscapes")
    if random:
        body += f"<p class='quiet'>Without a gradient, and along random directions: {', '.join(random)}.</p>"
    return section("landscape", "Loss landscape", about, body)


def detection(contents: Contents) -> str:
    """ROC curves."""
    about = (
        "Do misclassified images, clean or attacked, lie where clean ones seldom do? One Gaussian for each class is"
        " fitted to every other clean image; the others are scored. The area is 0.5 by chance. It cannot show what an"
        " attack that avoids detection would do."
    )
    several = {each.name: each.detection for each in contents.models if each.detection is not None}
    body = chart(RocDisplay.from_detections(several), "ROC curves of detection") if several else LEFT_OUT
    return section("detection", "Detection", about, body)


def moves(contents: Contents, numbers: dict[str, Any]) -> str:
    """The ten images of each model whose representation moves farthest."""
    about = (
        "The ten images whose representation the attack moves farthest (angular distance, at most 1): the clean image,"
        " the attacked one, and what was changed, amplified. They are extremes, and say nothing about the usual image."
    )
    data, parts = contents.data, []
    for each in represented(contents):
        figures = []
        for record in numbers["models"][each.name]["largest_moves"]:
            clean, adversarial = data.images[record["row"]].numpy(), np.asarray(each.reps.adv_images[record["row"]])
            images = [clean, adversarial, change(clean, adversarial, contents.attack.eps)]
            alts = [f"image {record['index']}", "attacked", "the change"]
            pictures = "".join(thumbnail(pixels, alt) for pixels, alt in zip(images, alts, strict=True))
            words = text(f"{record['true']}: {record['clean']} → {record['adversarial']}")
            figures.append(
                f'<figure><div class="three">{pictures}</div><figcaption>{words}<br>moved {record["move"]:.2f}, image'
                f" {record['index']}</figcaption></figure>"
            )
        parts.append(f'<h3>{text(each.name)}</h3><div class="moves">{"".join(figures)}</div>')
    caption = "<p class='quiet'>Below each: true class: predicted clean → predicted attacked.</p>"
    return section("moves", "The largest moves", about, caption + "".join(parts) if parts else LEFT_OUT)


def between_models(numbers: dict[str, Any]) -> str:
    """Linear CKA between the representations of each pair of models."""
    matrices = numbers["cka_between_models"]
    about = (
        "Linear CKA between the representations that two models classify by, of the same images: 1 where one is the"
        " other turned and scaled. With more units than images it is biased upwards."
    )

    def rows(part: str) -> str:
        names = [text(name) for name in matrices["models"]]
        lines = [[name, *map(number, line)] for name, line in zip(names, matrices[part], strict=True)]
        return table([part, *names], lines)

    body = f'<div class="panels">{rows("clean")}{rows("adversarial")}</div>'
    return section("between", "Between the models", about, body)
