"""Tables 1 and 2: what the networks consist of, read off the models themselves, beside what the supplement prints."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from analysis.tables import Column, Table
from tla_core.models import build_model

# Table 1 as printed: layer, channels or units in and out, kernel.
_TABLE_1 = (
    ("Conv", "1", "32", "3 × 3"), ("BatchNormalization", "32", "32", ""), ("ReLU", "", "", ""),
    ("Conv", "32", "64", "3 × 3"), ("BatchNormalization", "64", "64", ""), ("ReLU", "", "", ""),
    ("Max Pooling", "", "", "2 × 2"),
    ("Conv", "64", "128", "3 × 3"), ("BatchNormalization", "128", "128", ""), ("ReLU", "", "", ""),
    ("Conv", "128", "256", "3 × 3"), ("BatchNormalization", "256", "256", ""), ("ReLU", "", "", ""),
    ("Max Pooling", "", "", "2 × 2"),
    ("Fully Connected", "7 × 7 × 256", "1024", ""), ("BatchNormalization", "1024", "1024", ""), ("ReLU", "", "", ""),
    ("Fully Connected", "1024", "10", ""), ("Softmax", "", "", ""),
)  # fmt: skip
# Table 2 as printed: output size, what the layer consists of.
_TABLE_2 = {
    "stem": ("32 × 32", "3 × 3, 16, stride 1"),
    "group1": ("16 × 16", "[3 × 3, 160; 3 × 3, 160] × 6"),
    "group2": ("8 × 8", "[3 × 3, 320; 3 × 3, 320] × 6"),
    "group3": ("4 × 4", "[3 × 3, 640; 3 × 3, 640] × 6"),
    "classifier": ("1 × 1", "average pool, 10-d fc, softmax"),
}
_MARK = {True: "as printed", False: "DIFFERS"}


def output_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each module's output for one image; nothing is computed.

    Parameters
    ----------
    model : nn.Module
    image_shape : (int, int, int)
        Channels, height and width.

    Returns
    -------
    dict of str to tuple of int
        Module path -> shape without the batch, in the order of execution.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def keep(path: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                shapes[path] = tuple(output.shape[1:])

        return hook

    bare = copy.deepcopy(model).to("meta").eval()
    for path, module in bare.named_modules():
        if path:
            module.register_forward_hook(keep(path))
    with torch.no_grad():
        bare(torch.empty(1, *image_shape, device="meta"))
    return shapes


def table_1() -> Table:
    """The MNIST network layer by layer, beside Table 1 of the supplement."""
    with torch.device("meta"):
        size = {"in_channels": 1, "image_size": 28, "n_classes": 10}
        model = build_model("lenet", width=1, blocks=(), normalization="none", **size)
    shapes = output_shapes(model, (1, 28, 28))
    kinds = {
        nn.Conv2d: "Conv", nn.BatchNorm2d: "BatchNormalization", nn.BatchNorm1d: "BatchNormalization",
        nn.ReLU: "ReLU", nn.MaxPool2d: "Max Pooling", nn.Linear: "Fully Connected",
    }  # fmt: skip
    modules = [(path, module) for path, module in model.named_modules() if type(module) in kinds]
    rows = []
    for line, (path, module) in zip(_TABLE_1, [*modules, ("", None)], strict=True):
        if module is None:  # the loss has it inside
            rows.append({"layer": line[0], "note": "in the loss: the models return logits"})
            continue
        layer = (kinds[type(module)], *_in_and_out(module))
        mark = _MARK[(layer[0], *(text.replace("12544", "7 × 7 × 256") for text in layer[1:])) == line]
        rows.append({
            "layer": line[0], "in": line[1], "out": line[2], "kernel": line[3], "path": path,
            "output": " × ".join(map(str, shapes[path])), "parameters": _count(module), "note": mark,
        })  # fmt: skip
    total = {"layer": "all", "parameters": _count(model)}
    columns = [
        Column("layer", "layer"), Column("in", "in"), Column("out", "out"), Column("kernel", "kernel"),
        Column("path", "our module", align="left"), Column("output", "its output"), Column("parameters", "parameters"),
        Column("note", "our module beside the printed line", align="left"),
    ]  # fmt: skip
    return Table(columns, [*rows, total], "Table 1: the MNIST network as printed, and the modules of our model.")


def table_2() -> Table:
    """The CIFAR-10 networks group by group: Table 2 as printed, our model of it, and Madry's network that it names."""
    size = {"in_channels": 3, "image_size": 32, "n_classes": 10}
    rows = [{"layer": path, "printed": f"{out}: {setup}"} for path, (out, setup) in _TABLE_2.items()]
    total: dict[str, Any] = {"layer": "parameters", "printed": "", "table2 note": "", "madry note": ""}
    for key, name in (("table2", "wrn-table2"), ("madry", "wrn-madry")):
        with torch.device("meta"):
            model = build_model(name, width=1, blocks=(), normalization="per-image", **size)
        shapes = output_shapes(model, (3, 32, 32))
        for row in rows:
            setup = _group_text(model, row["layer"])
            out = " × ".join(map(str, shapes[row["layer"]][1:])) or "1 × 1"
            row[key] = f"{out}: {setup}"
            row[f"{key} note"] = _MARK[row[key] == row["printed"]]
        total[key] = f"{_count(model):,}"
    columns = [
        Column("layer", "layer"), Column("printed", "printed", align="left"),
        Column("table2", "wrn-table2", align="left"), Column("table2 note", "", align="left"),
        Column("madry", "wrn-madry", align="left"), Column("madry note", "", align="left"),
    ]  # fmt: skip
    caption = (
        "Table 2: the CIFAR-10 network as printed, our network of it, and that of Madry et al., which it names as its"
        " source: output size, and what the layer consists of."
    )
    return Table(columns, [*rows, total], caption)


def _in_and_out(module: nn.Module) -> tuple[str, str, str]:
    if isinstance(module, nn.Conv2d):
        return str(module.in_channels), str(module.out_channels), " × ".join(map(str, module.kernel_size))
    if isinstance(module, nn.Linear):
        return str(module.in_features), str(module.out_features), ""
    if isinstance(module, nn.MaxPool2d):
        return "", "", f"{module.kernel_size} × {module.kernel_size}"
    return (str(module.num_features), str(module.num_features), "") if hasattr(module, "num_features") else ("", "", "")


def _group_text(model: nn.Module, path: str) -> str:
    module = model.get_submodule(path)
    if isinstance(module, nn.Linear):
        return f"average pool, {module.out_features}-d fc, softmax"
    if isinstance(module, nn.Conv2d):
        return f"{_kernel(module)}, stride {module.stride[0]}"
    first = module[0]
    return f"[{_kernel(first.conv1)}; {_kernel(first.conv2)}] × {len(module)}"


def _kernel(convolution: nn.Conv2d) -> str:
    return f"{' × '.join(map(str, convolution.kernel_size))}, {convolution.out_channels}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
