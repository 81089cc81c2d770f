"""Tables 1 and 2: what they print is the supplement's, and what stands beside it is read off the models."""

import copy

import pytest
import torch
from torch import nn

from analysis.paper.architectures import output_shapes, table_1, table_2
from tla_core.models import LeNet, WideResNetMadry, WideResNetTable2, build_model

# Transcribed from the supplement, line by line: layer, in, out, kernel.
TABLE_1 = """
Conv 1 32 3x3 | BatchNormalization 32 32 | ReLU
Conv 32 64 3x3 | BatchNormalization 64 64 | ReLU
Max Pooling 2x2
Conv 64 128 3x3 | BatchNormalization 128 128 | ReLU
Conv 128 256 3x3 | BatchNormalization 256 256 | ReLU
Max Pooling 2x2
Fully Connected 7x7x256 1024 | BatchNormalization 1024 1024 | ReLU
Fully Connected 1024 10 | Softmax
"""
TABLE_2 = {
    "stem": "32 × 32: 3 × 3, 16, stride 1",
    "group1": "16 × 16: [3 × 3, 160; 3 × 3, 160] × 6",
    "group2": "8 × 8: [3 × 3, 320; 3 × 3, 320] × 6",
    "group3": "4 × 4: [3 × 3, 640; 3 × 3, 640] × 6",
    "classifier": "1 × 1: average pool, 10-d fc, softmax",
}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(network, **settings):
    with torch.device("meta"):
        return network(**settings)


# Table 1 --------------------------------------------------------------------------------------------------------------


def test_table_1_is_printed_as_in_the_supplement():
    lines = [line.strip() for line in TABLE_1.replace("\n", "|").split("|") if line.strip()]
    keys = ("layer", "in", "out", "kernel")
    found = [" ".join(row[key].replace(" × ", "x") for key in keys if row.get(key)) for row in table_1().rows[:-1]]
    assert found == lines


def test_every_line_of_table_1_is_a_module_of_our_network_in_that_order():
    model, rows = on_meta(LeNet), table_1().rows
    layers, softmax, total = rows[:-2], rows[-2], rows[-1]
    assert {row["note"] for row in layers} == {"as printed"} and "logits" in softmax["note"]
    leaves = [path for path, module in model.named_modules() if path and not list(module.children())]
    assert [row["path"] for row in layers] == [
        path for path in leaves if not isinstance(model.get_submodule(path), (nn.Flatten, nn.Identity))
    ]
    for row in layers:
        assert row["parameters"] == count(model.get_submodule(row["path"]))
    assert total == {"layer": "all", "parameters": count(model)}
    assert sum(row["parameters"] for row in layers) == count(model)


def test_outputs_in_table_1_are_those_that_the_printed_sizes_give():
    """Same padding keeps the size, and pooling halves it: 28, 14, 7."""
    size, channels, expected = 28, 1, []
    for row in table_1().rows[:-2]:
        if row["layer"] == "Fully Connected":
            assert row["in"] in ("1024", f"{size} × {size} × {channels}")
            size = None
        size = size // 2 if row["layer"] == "Max Pooling" else size
        channels = row["out"] or channels
        expected.append(f"{channels} × {size} × {size}" if size else channels)
    assert [row["output"] for row in table_1().rows[:-2]] == expected


# Table 2 --------------------------------------------------------------------------------------------------------------


def test_table_2_is_printed_as_in_the_supplement_and_our_network_of_it_is_the_same():
    rows = table_2().rows[:-1]
    assert {row["layer"]: row["printed"] for row in rows} == TABLE_2
    assert {row["layer"]: row["table2"] for row in rows} == TABLE_2
    assert {row["table2 note"] for row in rows} == {"as printed"}


def test_madrys_network_differs_from_table_2_in_its_groups():
    """Five blocks instead of six, at 32, 16 and 8 pixels: it is not the same network, as the supplement has it."""
    rows = table_2().rows[:-1]
    assert {row["layer"]: row["madry"] for row in rows} == {
        **TABLE_2,
        "group1": "32 × 32: [3 × 3, 160; 3 × 3, 160] × 5",
        "group2": "16 × 16: [3 × 3, 320; 3 × 3, 320] × 5",
        "group3": "8 × 8: [3 × 3, 640; 3 × 3, 640] × 5",
    }
    notes = {row["layer"]: row["madry note"] for row in rows}
    assert notes == {layer: "DIFFERS" if "group" in layer else "as printed" for layer in TABLE_2}


def test_totals_in_table_2_are_the_models_parameters():
    total = table_2().rows[-1]
    for key, network in (("table2", WideResNetTable2), ("madry", WideResNetMadry)):
        assert total[key] == f"{count(on_meta(network)):,}"
    assert total["madry"].startswith("45,9"), "45.9 M, as published"


@pytest.mark.parametrize("make", [table_1, table_2])
def test_the_tables_render_in_every_format(make):
    table = make()
    assert {c.key for c in table.columns} >= set().union(*table.rows)
    for text in (table.to_csv(), table.to_markdown(), table.to_latex(), table.to_html()):
        assert "as printed" in text and "None" not in text and "nan" not in text
    assert "Table" in table.caption and r"3 $\times$ 3" in table.to_latex()


# Shapes ---------------------------------------------------------------------------------------------------------------

NARROW = {
    "lenet": {"width": 1 / 16}, "wrn-table2": {"width": 0.1, "blocks": (1, 1, 1)},
    "wrn-madry": {"width": 0.1, "blocks": (1, 2, 1)}, "resnet50": {"width": 1 / 16, "blocks": (1, 1, 1, 1)},
    "preact-resnet50": {"width": 1 / 16, "blocks": (1, 1, 1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("network", NARROW)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_shapes_are_those_of_a_real_forward_pass(network, channels, size):
    model = build_model(
        network, normalization="per-image", in_channels=channels, image_size=size, n_classes=7, **NARROW[network]
    ).eval()
    seen = {}
    for path, module in model.named_modules():
        if path:
            module.register_forward_hook(lambda m, i, output, path=path: seen.update({path: tuple(output.shape[1:])}))
    bare = copy.deepcopy(model)
    for module in bare.modules():
        module._forward_hooks.clear()
    logits = model(torch.rand(2, channels, size, size))
    found = output_shapes(bare, (channels, size, size))
    assert found == seen and list(found) == list(seen)
    assert next(reversed(found.values())) == tuple(logits.shape[1:]) == (7,)


def test_asking_for_shapes_leaves_no_trace():
    model = LeNet(width=1 / 16).train()
    before = copy.deepcopy(model.state_dict())
    output_shapes(model, (1, 28, 28))
    assert model.training and all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_shapes_of_modules_that_give_no_tensor_are_left_out():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class First(nn.Module):
        def forward(self, pair):
            return pair[0].flatten(1)

    assert output_shapes(nn.Sequential(Pair(), First()), (2, 3, 4)) == {"1": (24,)}


def test_images_that_do_not_fit_the_model_are_refused():
    with pytest.raises(RuntimeError, match="channel"):
        output_shapes(LeNet(width=1 / 16), (3, 28, 28))
