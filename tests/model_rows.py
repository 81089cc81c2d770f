"""The rows of the table in docs/guide/models.md: people's models, and what each function does with them."""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn

import analysis
import tla_core as tla
from tla_core.wrapping import core

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "models.md"
START, END = "<!-- table: made by tests/model_rows.py -->", "<!-- end of the table -->"
CELLS = ("penultimate", "layer", "tokens or map", "evaluate", "landscapes", "explorer")
COLUMNS = (*CELLS, "report")
N = 2
N_REPORT = 8
CLASSES = 4
WORKS = "yes"


@dataclass(frozen=True)
class Row:
    """One model: how it is made, what it takes, and which cells are not "yes", by a note of `NOTES`."""

    name: str
    make: Callable[[], nn.Module]
    layer: str
    reduced: str
    size: int = 32
    library: str = ""
    notes: dict[str, str] = field(default_factory=dict)


# Why a cell is another answer than "yes", and what the message of the error or the warning has in it.
NOTES = {
    "which": (
        "Two outputs could be the logits. The error shows what came out, and that `tla.wrap(model, output=...)` says"
        " which.",
        "which of the model's outputs are the logits",
    ),
    "maps": (
        "A network of features returns maps and no logits. The error shows them: put a head behind it.",
        "which of the model's outputs are the logits",
    ),
    "heads": (
        "Two heads on two tokens are averaged, so that there is no one vector that enters the head. The error lists the"
        " layers that ran last.",
        "cannot be told",
    ),
    "graph": (
        "What is scripted, traced or exported is one graph, whose modules are not called. The error says so;"
        " `penultimate` and `logits` work.",
        "is not called as a module",
    ),
    "quantised": (
        "No gradient leads through quantised layers: a gradient attack is of no use, and a warning says so.",
        "no gradient leads",
    ),
}


# Networks that are written here ---------------------------------------------------------------------------------------


class ViewLeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Linear(6 * 14 * 14, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 2)
        return self.fc2(F.relu(self.fc1(x.view(-1, 6 * 14 * 14))))


class Returning(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]):
        super().__init__()
        self.net, self.function = ViewLeNet(), function

    def forward(self, x):
        return self.function(self.net(x))


def body() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 16))


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.weight, self.scale = body(), nn.Parameter(torch.randn(CLASSES, 16)), 10.0

    def forward(self, x):
        return self.scale * F.linear(F.normalize(self.body(x)), F.normalize(self.weight))


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = body()
        self.register_buffer("prototypes", torch.randn(CLASSES, 16))

    def forward(self, x):
        return -torch.cdist(self.body(x), self.prototypes)


def convolution_head() -> nn.Module:
    maps = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(maps, nn.Conv2d(8, CLASSES, 1), nn.AdaptiveAvgPool2d(1))


def traced() -> nn.Module:
    return torch.jit.trace(ViewLeNet().eval(), torch.rand(2, 3, 32, 32))


def exported() -> nn.Module:
    size = {0: torch.export.Dim("n")}
    return torch.export.export(body().eval(), (torch.rand(2, 3, 32, 32),), dynamic_shapes=(size,)).module()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(ViewLeNet().eval(), {nn.Linear})


# Libraries ------------------------------------------------------------------------------------------------------------


def timm_model(name: str, **options) -> Callable[[], nn.Module]:
    def make():
        import timm

        return timm.create_model(name, pretrained=False, **{"num_classes": CLASSES, **options})

    return make


def hugging_face_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_labels=CLASSES,
    )  # fmt: skip
    return ViTForImageClassification(config)


def hugging_face_resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", num_labels=CLASSES))


def lightning_module() -> nn.Module:
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.loss = ViewLeNet(), nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            return self.loss(self.net(batch[0]), batch[1])

    return Lit()


def vision(name: str, layer: str, reduced: str, size: int = 32, **options) -> Row:
    make = getattr(zoo, name)
    return Row(f"torchvision {name}", lambda: make(weights=None, num_classes=CLASSES, **options), layer, reduced, size)


def of_view(name: str, make: Callable[[], nn.Module], layer="fc1", reduced="conv:mean", notes=None) -> Row:
    return Row(name, make, layer, reduced, notes=notes or {})


def everywhere(note: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, note)


ROWS = (
    vision("resnet18", "layer1.0.relu#2", "layer4:mean"),
    vision("vgg11_bn", "classifier.0", "features:max", init_weights=False),
    vision("mobilenet_v3_small", "features.4", "features.12:mean"),
    vision("convnext_tiny", "features.3", "features.7:mean"),
    vision("vit_b_16", "encoder.layers.encoder_layer_11.mlp:flatten", "encoder.ln:cls", image_size=32),
    vision("swin_t", "features.3", "norm:mean"),
    vision("inception_v3", "Mixed_6a", "Mixed_7c:mean", size=75, init_weights=False),
    vision("squeezenet1_1", "features.3", "features.12:mean"),
    vision("regnet_y_400mf", "trunk_output.block1", "trunk_output:mean"),
    Row("timm resnet10t", timm_model("resnet10t"), "layer1", "layer4:mean", library="timm"),
    Row("timm vit_tiny_patch16_224", timm_model("vit_tiny_patch16_224", img_size=32), "blocks.3.mlp:flatten",
        "norm:cls", library="timm"),
    Row("timm deit_tiny_distilled_patch16_224", timm_model("deit_tiny_distilled_patch16_224", img_size=32),
        "blocks.3.mlp:flatten", "norm:cls", library="timm",
        notes=dict.fromkeys(("penultimate", "explorer", "report"), "heads")),
    Row("timm convnext_atto", timm_model("convnext_atto"), "stages.0", "stages.3:mean", library="timm"),
    Row("timm resnet10t, features_only", timm_model("resnet10t", features_only=True, num_classes=0), "layer1",
        "layer4:mean", library="timm", notes=everywhere("maps")),
    Row("transformers ViTForImageClassification", hugging_face_vit, "vit.embeddings:flatten", "vit.layernorm:cls",
        library="transformers"),
    Row("transformers ResNetForImageClassification", hugging_face_resnet, "resnet.encoder.stages.0",
        "resnet.encoder.stages.1:mean", library="transformers"),
    Row("Lightning module", lightning_module, "net.fc1", "net.conv:mean", library="lightning"),
    of_view("LeNet that flattens with `.view`", ViewLeNet),
    of_view("output: tuple of one", lambda: Returning(lambda z: (z,)), "net.fc1", "net.conv:mean"),
    of_view("output: dict of logits and features", lambda: Returning(lambda z: {"logits": z, "features": z * 2}),
            "net.fc1", "net.conv:mean"),
    of_view("output: list of logits and None", lambda: Returning(lambda z: [z, None]), "net.fc1", "net.conv:mean"),
    of_view("output: two of one shape", lambda: Returning(lambda z: (z, -z)), "net.fc1", "net.conv:mean",
            everywhere("which")),
    of_view("output: two, and `tla.wrap(model, output=0)`", lambda: tla.wrap(Returning(lambda z: (z, -z)), output=0),
            "net.fc1", "net.conv:mean"),
    of_view("torch.compile", lambda: torch.compile(ViewLeNet(), backend="eager")),
    of_view("DataParallel", lambda: nn.DataParallel(ViewLeNet()), "module.fc1", "module.conv:mean"),
    of_view("torch.jit.trace", traced, notes={"layer": "graph", "tokens or map": "graph"}),
    Row("torch.export", exported, "4", "0:mean", notes={"layer": "graph", "tokens or map": "graph"}),
    of_view("dynamic quantised", quantised, notes=dict.fromkeys(("evaluate", "explorer", "report"), "quantised")),
    of_view("bfloat16", lambda: ViewLeNet().bfloat16()),
    of_view("float16", lambda: ViewLeNet().half()),
    of_view("float64", lambda: ViewLeNet().double()),
    Row("head: cosine", Cosine, "body.0", "body.0:mean"),
    Row("head: prototypes", Prototypes, "body.0", "body.0:mean"),
    Row("head: 1x1 convolution", convolution_head, "0.0", "0:max"),
)  # fmt: skip


# What is done with each -----------------------------------------------------------------------------------------------


def network_of(row: Row) -> nn.Module:
    """With the same random weights every time."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = row.make()
    return model if isinstance(model, torch.fx.GraphModule) else model.eval()


def inputs_of(row: Row, n: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images and their classes."""
    return np.random.default_rng(0).random((n, 3, row.size, row.size), np.float32), np.arange(n) % CLASSES


def try_cells(row: Row) -> dict[str, str]:
    """For each of `CELLS` "yes", or what was raised or warned of in place of it."""
    model, (images, labels) = network_of(row), inputs_of(row, N)
    attack = tla.AttackConfig(name="fgsm", eps=8 / 255)
    sets = {}

    def extract(*layers: str, attack: tla.AttackConfig | None = None) -> None:
        sets.update(analysis.extract(model, images, labels, layer=layers, attack=attack))
        for layer in layers:
            assert len(sets[layer]) == N and np.ptp(sets[layer].features, axis=0).any(), "features that say nothing"

    def evaluate() -> None:
        outcome = tla.evaluate(model, images, labels, {"FGSM": attack}, checks=False)
        assert set(outcome.accuracy) == {"clean", "FGSM"}

    def landscapes() -> None:
        plane = analysis.input_landscape(model, images[0], labels[0], radius=0.1, resolution=2)
        small = [{n: np.ones(p.shape, np.float32)} for n, p in core(model).named_parameters() if p.ndim == 1][:1]
        weights = analysis.weight_landscape(
            model, images[:1], labels[:1], resolution=2, radius=0.1, directions=small * 2 or None
        )
        assert np.isfinite(plane.loss).all() and np.isfinite(weights.loss).all()

    def explorer() -> None:
        if "penultimate" not in sets or sets["penultimate"].adv_features is None:
            extract("penultimate", attack=attack)
        analysis.EmbeddingExplorer({"model": sets["penultimate"]}, images=images, methods=("pca",), progress=False)

    layers = ("penultimate", row.layer, row.reduced)
    together = _tried(lambda: extract(*layers, attack=attack))  # one by one only where that does not work
    found = [together if together == WORKS else _tried(lambda layer=layer: extract(layer)) for layer in layers]
    found += [_tried(cell) for cell in (evaluate, landscapes, explorer)]
    return dict(zip(CELLS, found, strict=True))


def try_report(row: Row, folder: Path) -> str:
    """ "yes" where a page and its numbers are written, or what was raised or warned of in place of it."""

    def cell() -> None:
        images, labels = inputs_of(row, N_REPORT)
        made = analysis.report(
            {"model": network_of(row)}, images, labels, eps=8 / 255, out=folder, autoattack=0, explorer=False
        )
        assert made.path.is_file() and made.numbers["models"]["model"]["summary"]

    return _tried(cell)


def _tried(cell: Callable[[], None]) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cell()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    ours = [str(each.message) for each in caught if "no gradient leads" in str(each.message)]
    return ours[0] if ours else WORKS


# The table ------------------------------------------------------------------------------------------------------------


def is_installed(row: Row) -> bool:
    return not row.library or importlib.util.find_spec(row.library) is not None


def table() -> str:
    """The table of all rows, as Markdown, with the notes below it."""
    used = list(dict.fromkeys(note for row in ROWS for note in row.notes.values()))
    lines = [f"| model | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in ROWS:
        cells = []
        for column in COLUMNS:
            note = row.notes.get(column)
            word = "warns" if note == "quantised" else "error"
            cells.append(f"{word} ({used.index(note) + 1})" if note else WORKS)
        lines.append(f"| {row.name} | {' | '.join(cells)} |")
    notes = [f"{number}. {NOTES[note][0]}" for number, note in enumerate(used, 1)]
    return "\n".join([*lines, "", *notes])


def page_with_table(text: str) -> str:
    """The text of the page with the table of today in it."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text()))
