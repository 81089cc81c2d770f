"""`tla report`: one page on what an attack does to models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from analysis.command.arguments import MODEL_AS_IT_IS, OWN_DATA, OfData, OfModel
from analysis.command.model_names import MODEL_FORMS


def report(
    specs: Positional[Annotated[tuple[str, ...], arg(metavar="MODEL", help=f"One to six, each {MODEL_FORMS}.")]],
    *,
    eps: Annotated[float, arg(help="Radius of the attacks in pixel units, such as 8/255.")],
    out: Annotated[Path, arg(help="Folder of report.html, report.json and explorer.html; it goes on what lies there.")],
    model: OfModel = MODEL_AS_IT_IS,
    data: OfData = OWN_DATA,
    norm: Annotated[Literal["linf", "l2"], arg(help="The ball of the attacks.")] = "linf",
    images: Annotated[int, arg(help="At most so many, of each class as large a share as of the others.")] = 1000,
    minutes: Annotated[float | None, arg(help="Begin no further part after so many; a later call goes on.")] = None,
    layer: Annotated[str, arg(help="What the report calls the representation.")] = "penultimate",
    autoattack: Annotated[
        int | None, arg(help="Images for AutoAttack; by default as many as are affordable, 100 at most. 0 is none.")
    ] = None,
    explorer: Annotated[bool, arg(help="Write the embedding explorer beside the page.")] = True,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Write one page on what an attack does to the accuracy and the representations of one model or several."""
    import os
    import shlex
    import sys

    from analysis.command.measuring import refuse_trained_on
    from analysis.command.opening import check_fits, open_models
    from analysis.command.opening_data import open_data
    from analysis.reports.making import report as make_report

    if not specs:
        raise ValueError("tla report needs a MODEL: `tla report MODEL... --data DATA --eps 8/255 --out FOLDER`.")
    # Where the data are named they are opened first: they say how many classes a network should have.
    dataset = None if data.data is None else open_data(data)
    n_classes = None if dataset is None else len(dataset.class_names)
    opened = open_models(specs, model, n_classes=n_classes, device=device)
    dataset = dataset or open_data(data, next(iter(opened.values())))
    for each in opened.values():
        refuse_trained_on(each, dataset)
        check_fits(each, dataset)
    command = os.environ.get("TLA_COMMAND") or shlex.join(["tla", *sys.argv[1:]])
    result = make_report(
        {name: each.model for name, each in opened.items()}, dataset, eps=eps, out=out, norm=norm, n_images=images,
        minutes=minutes, layer=layer, autoattack=autoattack, explorer=explorer, command=command, progress=progress,
    )  # fmt: skip
    for name, numbers in result.numbers["models"].items():
        trust, summary = numbers["trust"], numbers["summary"]
        print(f"{name}: clean {summary['clean']:.1%}, strongest {summary['strongest']:.1%}. {trust['sentence']}")
    for line in result.numbers["left_out"]:
        print(f"left out: {line}")
    print(result.path)
