"""Models of any origin, and any images, on the command line."""

import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import REPOSITORY, file_size_limit, mnist_images, project_folder, tiny_config, use_few_images

import tla_core as tla
from analysis.command.arguments import MODEL_AS_IT_IS, OWN_DATA, DataOptions, ModelOptions
from analysis.command.main import main
from analysis.command.opening import check_fits, open_model, open_models, state_digest
from analysis.command.opening_data import open_data
from analysis.representations import RepresentationSet
from tla_core.datasets import ImageDataset, load_dataset
from tla_core.evaluation import evaluate

NETS = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 3))

def sized(num_classes):
    return nn.Linear(784, num_classes)

class Named(nn.Module):
    class_names = ["cat", "dog", "owl", "eel"]
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 4)
    def forward(self, x):
        return {"scores": self.head(x.flatten(1)), "others": self.head(1 - x.flatten(1))}

class Silent(nn.Linear):
    def __init__(self):
        super().__init__(784, 3)
    def forward(self, x):
        return None

def nothing(): return None
def text(): return "a network"
def nan(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.Threshold(9e9, float("nan")))
def one(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
def ten(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
def colour(): return nn.Conv2d(3, 3, 28)
def needs(width, depth): return net()
def broken(): return undefined
function = torch.nn.functional.relu

def data():
    random = torch.Generator().manual_seed(1)
    return torch.rand(9, 1, 28, 28, generator=random).mul(255).round() / 255, [0, 1, 2] * 3
def no_data(): return None
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A working directory with networks in `nets.py`, and images in `three.npz`: 12 of three classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "nets.py").write_text(NETS)
    np.savez(tmp_path / "three.npz", images=mnist_images(12).images.numpy(), labels=np.arange(12) % 3)
    return tmp_path


def opened(spec="nets.py:net", **options):
    return open_model(spec, ModelOptions(**options))


def data(text, **options):
    return open_data(DataOptions(data=text, **options))


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_function_in_a_file(here):
    model = opened()
    x = torch.rand(2, 1, 28, 28)
    torch.manual_seed(0)
    expected = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )
    assert torch.equal(model.model(x), expected(x)) and not model.model.training
    assert (model.name, model.run, model.config) == ("net", None, None)
    assert model.weights_digest == state_digest(expected) == opened().weights_digest


def test_the_digest_is_that_of_weights_normalisation_classes_and_code(here):
    digests = {opened().digest, opened(mean=(0.5,), std=(0.5,)).digest, opened(classes=("0", "2")).digest}
    (here / "other.py").write_text(f"{NETS}# another file\n")
    digests.add(opened("other.py:net").digest)
    torch.save({"state_dict": torch.nn.Sequential(*opened().model.model).state_dict()}, "same.pt")
    assert opened(weights=here / "same.pt").digest == opened().digest
    assert len(digests) == 4


def test_a_function_that_gives_random_weights_is_said_to_do_so(here):
    with pytest.warns(UserWarning, match=r"nets.py:ten gives other weights at each call.*--weights FILE"):
        model = opened("nets.py:ten").model.model
    torch.save(model.state_dict(), "ten.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened("nets.py:ten", weights=here / "ten.pt")
        opened("nets.py:net")  # which seeds them


def test_classes_and_outputs_by_name_and_number(here):
    x = torch.rand(2, 1, 28, 28)
    model = opened("nets.py:Named", output="others", classes=("owl", "cat")).model
    assert torch.equal(model(x), model.model(x)["others"][:, [2, 0]])
    assert torch.equal(opened(classes=("2", "0")).model(x), opened().model(x)[:, [2, 0]])


def test_what_needs_a_number_of_classes_gets_that_of_the_data():
    assert open_model("nets.py:sized", MODEL_AS_IT_IS, n_classes=7).model.model.out_features == 7


def test_a_function_of_a_package(here):
    (here / "my_models").mkdir()
    (here / "my_models" / "small.py").write_text(NETS)
    assert opened("my_models.small:net").weights_digest == opened().weights_digest


def test_a_library_network_takes_its_classes_from_its_weights_or_the_data(here):
    import torchvision.models as zoo

    name, images = "shufflenet_v2_x0_5", mnist_images(3).images.expand(-1, 3, -1, -1)
    three = zoo.get_model(name, num_classes=3).eval()
    torch.save({"model": {f"module.{key}": value for key, value in three.state_dict().items()}}, "three.pth")
    options = ModelOptions(weights=here / "three.pth")
    model = open_model(f"torchvision:{name}", options, n_classes=3)
    assert model.name == name and torch.equal(model.model(images / 255), three(images / 255))
    with pytest.raises(ValueError, match=r"2 of another shape: fc.weight \(3, 1024\), in the model \(1000, 1024\)"):
        open_model(f"torchvision:{name}", options, n_classes=None)
    assert open_model(f"torchvision:{name}@random", MODEL_AS_IT_IS, n_classes=5).model(images / 255).shape == (3, 5)


def test_a_library_network_without_weights_is_never_measured_nor_downloaded(monkeypatch):
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("nobody asked for it"))
    with pytest.raises(ValueError, match=r"has no weights: pass a file of them, --weights FILE; or ask for a download"):
        opened("torchvision:resnet18")
    with pytest.raises(ValueError, match=r"no weights 'IMAGENET' of resnet18\..* There are: DEFAULT, IMAGENET1K_V1"):
        opened("torchvision:resnet18@IMAGENET")
    with pytest.raises(ValueError, match=r"no classifier 'resnet81'\. Did you mean resnet18\?"):
        opened("torchvision:resnet81@random")


def test_weights_that_are_asked_for_bring_their_normalisation_and_class_names(monkeypatch):
    import torchvision.models as zoo

    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.WeightsEnum.get_state_dict",
        lambda self, **_: asked.append(self.name) or zoo.shufflenet_v2_x0_5(weights=None).state_dict(),
    )
    model = opened("torchvision:shufflenet_v2_x0_5@IMAGENET1K_V1", classes=("tench", "goldfish")).model
    assert asked == ["IMAGENET1K_V1"] and model.classes == [0, 1]
    assert "0.485" in repr(model.normalize)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_library_that_is_missing_is_named(library, here, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    (here / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ImportError, match=rf"{library} is not installed: `pip install {library}`, or .*\[models\]"):
        opened("timm:resnet10t@random" if library == "timm" else ".")


def test_timm():
    pytest.importorskip("timm")
    model = open_model("timm:resnet10t@random", MODEL_AS_IT_IS, n_classes=3).model
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match=r"no model 'resnet10x'\. Did you mean resnet10t\?"):
        opened("timm:resnet10x@random")


def test_a_folder_of_transformers(here):
    transformers = pytest.importorskip("transformers")
    sizes = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic", "num_labels": 3}
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes)).eval()
    network.save_pretrained(here / "hub")
    (here / "hub/preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    model, x = opened("hub"), torch.rand(2, 3, 32, 32)
    assert model.name == "hub" and torch.allclose(model.model(x), network(x * 2 - 1).logits, atol=1e-5)
    save_file({"classifier.1.bias": torch.zeros(3)}, "part.safetensors")
    with pytest.raises(ValueError, match="are not those of this ResNet"):
        opened("hub", weights=here / "part.safetensors")


def test_several_models_have_names_that_tell_them_apart(here):
    (here / "other.py").write_text(NETS)
    assert list(open_models(["nets.py:net", "nets.py:ten"], MODEL_AS_IT_IS)) == ["net", "ten"]
    assert list(open_models(["nets.py:net", "other.py:net"], MODEL_AS_IT_IS)) == ["nets.py:net", "other.py:net"]
    with pytest.raises(ValueError, match="named twice"):
        open_models(["nets.py:net", "nets.py:net"], MODEL_AS_IT_IS)


# Images ---------------------------------------------------------------------------------------------------------------


def test_images_of_every_form(here):
    expected = mnist_images(12).images
    of_arrays = data("three.npz")
    assert torch.equal(of_arrays.images, expected) and of_arrays.name == "three.npz"
    save_file({"images": expected.float() / 255, "labels": torch.arange(12) % 3}, "three.safetensors")
    assert torch.equal(data("three.safetensors").images, expected)
    of_function = data("nets.py:data")
    assert of_function.labels.tolist() == [0, 1, 2] * 3 and of_function.images.dtype == torch.uint8
    for number in range(6):
        path = here / "pets/test" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50 + number), number, np.uint8)).save(path)
    folder = data("pets", resize=(32,), crop=(28,))
    assert folder.images.shape == (6, 1, 28, 28) and folder.class_names == ("cat", "dog")
    assert data("mnist-mini").name == "mnist-mini"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mnits", r"no images 'mnits'\. Did you mean mnist\? Expected mnist-mini, .*, an image folder"),
        ("nets.py:no_data", "gives nothing. Expected a dataset"),
        ("gone.npz", "there is no file gone.npz"),
        ("pickled.npz", "cannot be read: Object arrays cannot be loaded"),
        ("half.npz", "cannot be read: .*Expected arrays of numbers"),
        ("lacking.npz", r"lacks labels; it has: images"),
        ("empty.npz", "at least one image"),
        ("floats.npz", "must be bytes, or bytes divided by 255"),
        ("empty", "empty/test; expected an image folder"),
    ],
)
def test_what_gives_no_images_is_named(text, message, here):
    images = mnist_images(4).images.numpy()
    np.savez("pickled.npz", images=np.array([{}], dtype=object), labels=np.arange(1))
    (here / "half.npz").write_bytes((here / "three.npz").read_bytes()[:300])
    np.savez("lacking.npz", images=images)
    np.savez("empty.npz", images=images[:0], labels=np.arange(0))
    np.savez("floats.npz", images=images / 255 * 0.999, labels=np.arange(4))
    (here / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message):
        data(text)


def test_resize_and_crop_are_for_files():
    with pytest.raises(ValueError, match="--resize and --crop are for image files"):
        data("three.npz", crop=(20,))
    with pytest.raises(ValueError, match=r"--crop must be one length or two. Got 3"):
        data("mnist-mini", crop=(1, 2, 3))


FGSM = ["--attack.name", "fgsm", "--no-progress"]


# What does not fit ----------------------------------------------------------------------------------------------------


WRONG = {
    ("nowhere",): "nowhere holds no run: there is no config.json.*Expected a run or checkpoint folder, FILE.py",
    ("nets.py",): r"nets.py is a file: name a function in it, nets.py:FUNCTION. It has: net, sized, Named",
    ("three.npz",): "is a file. If it holds weights, name the model, and the file as --weights three.npz",
    ("nets.py:nett",): r"nets.py has no nett. Did you mean net\? It has: net, sized",
    ("gone.py:net",): "there is no file gone.py, of which 'gone.py:net' names a function",
    ("no_such_package.models:net",): "there is no module no_such_package.models",
    ("nets.py:needs",): r"nets.py:needs needs width, depth: expected a function that can be called without arguments",
    ("nets.py:nothing",): "nets.py:nothing must give a torch.nn.Module, or a function of images. Got NoneType",
    ("nets.py:text",): "nets.py:text must give a torch.nn.Module, or a function of images. Got str",
    ("nets.py:Silent",): r"nets.py:Silent: the model must return logits of the shape \(2, classes\). Got NoneType",
    ("nets.py:Named",): r"nets.py:Named: which of the model's outputs are the logits",
    ("nets.py:nan",): "returns NaN or infinite logits for 2 of 2 images",
    ("nets.py:one",): r"nets.py:one: labels must be in 0..0, since the model has 1 outputs",
    ("nets.py:colour",): "nets.py:colour does not take the images of three.npz, 1x28x28: RuntimeError: .*3 channels",
    ("nets.py:net", "--weights", "gone.pt"): "there is no file gone.pt",
    ("nets.py:net", "--weights", "other.pt"): "4 missing in the file: 1.weight, 1.bias, 3.weight, 3.bias; 2 unexpected:"
    " conv.weight, conv.bias",
    ("nets.py:net", "--mean", "0.5"): "--mean and --std belong together",
    ("nets.py:net", "--classes", "0", "1"): r"labels must be in 0..1, since the model has 2 outputs. Got the label 2",
    ("nets.py:net", "--classes", "cat"): "the model has no class 'cat'. It has no names of its outputs",
    ("nets.py:ten", "--data", "mnist-mini", "--classes", "1", "2"): "labels must be in 0..1",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
@pytest.mark.parametrize("command", ["evaluate", "extract", "explore"])
def test_what_does_not_fit_is_said_before_anything_takes_time(command, words, here, capsys, monkeypatch):
    for name in ("analysis.scales.accuracy.evaluate", "analysis.command.measuring.extract"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("this takes time"))
    torch.save(torch.nn.ModuleDict({"conv": torch.nn.Conv2d(1, 1, 1)}).state_dict(), "other.pt")
    given = [] if "--data" in words else ["--data", "three.npz"]
    before = sorted(here.rglob("*.safetensors"))
    assert main([command, *words, *given, "--no-progress"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("tla: error: ") and said.err.count("\n") == 1 and "Traceback" not in said.err
    assert re.search(WRONG[words], said.err), said.err
    assert sorted(here.rglob("*.safetensors")) == before


def test_an_error_in_the_users_own_code_keeps_its_traceback():
    with pytest.raises(NameError, match="undefined"):
        main(["evaluate", "nets.py:broken", "--data", "three.npz"])


def test_a_folder_of_one_class_is_no_task(here, capsys):
    (here / "pets/test/cat").mkdir(parents=True)
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(here / "pets/test/cat/0.png")
    assert main(["evaluate", "nets.py:net", "--data", "pets"]) == 1
    assert "nets.py:net has 3 outputs, and the images have 1 classes: say which outputs" in capsys.readouterr().err
    assert main(["evaluate", "nets.py:net", "--data", "pets", "--classes", "2"]) == 1
    assert "nets.py:net has one output; expected two classes or more" in capsys.readouterr().err


def test_classes_in_another_order_are_no_silent_mistake(here, capsys):
    for name in ("cat", "dog", "Eel", "owl"):
        (here / "pets/test" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(here / "pets/test" / name / "0.png")
    words = ["nets.py:Named", "--output", "scores", "--data", "pets", *FGSM]
    for given in ([], ["--classes", "cat", "dog", "owl", "eel"]):
        assert main(["evaluate", *words, *given]) == 1
        assert "classes of the images in another order: say --classes eel cat dog owl." in capsys.readouterr().err
    assert main(["evaluate", *words, "--classes", "eel", "cat", "dog", "owl"]) == 0


def test_an_eps_of_eight_is_refused(capsys):
    assert main(["extract", "nets.py:net", "--data", "three.npz", "--eps", "8"]) == 1
    assert "did you mean 8/255?" in capsys.readouterr().err
    assert main(["explore", "nets.py:net", "--data", "three.npz", "--eps", "8", "--no-open"]) == 1
    assert "did you mean 8/255?" in capsys.readouterr().err
    for flag in ("--eps", "--attack.eps"):
        assert main(["evaluate", "nets.py:net", "--data", "three.npz", flag, "8"]) == 1
        assert "did you mean 8/255?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        (["--eps", "16/255"], "PGD 20 x 0.00627451, eps 16/255 (linf)"),
        (["--attack.eps", "16/255"], "PGD 20 x 0.00627451, eps 16/255 (linf)"),
        (["--attack.norm", "l2", "--eps", "2"], "PGD 20 x 0.2, eps 2 (l2)"),
        (["--attack.step-size", "1/255", "--eps", "16/255"], "PGD 20 x 1/255, eps 16/255 (linf)"),
    ],
)
def test_evaluate_takes_an_eps_as_extract_does_with_steps_in_proportion(capsys, flags, printed):
    assert main(["evaluate", "nets.py:net", "--data", "three.npz", "--no-progress", *flags]) == 0
    assert printed in capsys.readouterr().out


def test_evaluate_with_two_different_eps_is_refused(capsys):
    assert main(["evaluate", "nets.py:net", "--data", "three.npz", "--eps", "0.1", "--attack.eps", "0.2"]) == 1
    assert "--eps and --attack.eps differ: 0.1 and 0.2" in capsys.readouterr().err


# Results --------------------------------------------------------------------------------------------------------------


def stored(here, pattern="results/**/accuracy-test.json"):
    return {path.parent.relative_to(here): json.loads(path.read_text()) for path in sorted(here.glob(pattern))}


def test_accuracies_say_which_model_and_images_they_are_of(here, capsys, monkeypatch):
    assert main(["evaluate", "nets.py:net", "--data", "three.npz", *FGSM, "--save", "table"]) == 0
    said = capsys.readouterr().out
    ((folder, record),) = stored(here).items()
    model, images = opened(), data("three.npz")
    assert str(folder) == f"results/net-{model.digest[:8]}/three.npz-{images.checksum[:8]}"
    assert f"stored in {folder}/accuracy-test.safetensors" in said
    assert f"net (sha256 {model.digest[:12]}) on three.npz test: 12 images (sha256 {images.checksum[:12]})" in said
    assert (record["data_name"], record["data_sha256"]) == ("three.npz", images.checksum)
    assert record["model"]["name"] == "net" and record["model"]["weights_sha256"] == model.weights_digest
    attack = tla.AttackConfig(name="fgsm", eps=8 / 255)
    oracle = evaluate(model.model, images.images, images.labels, {"FGSM-1": attack})
    assert {name: record["accuracies"][name]["accuracy"] for name in oracle.accuracy} == oracle.accuracy
    assert (here / "table.csv").is_file()
    monkeypatch.setattr("analysis.scales.accuracy.evaluate", lambda *_, **__: pytest.fail("it is stored"))
    assert main(["evaluate", "nets.py:net", "--data", "three.npz", *FGSM]) == 0


def test_the_table_of_images_of_ones_own_is_that_of_natural_images(here, capsys):
    words = ["--only", "FGSM", "APGD-CE", "--strongest-steps", "2", "--no-progress"]
    assert main(["evaluate", "nets.py:net", "nets.py:sized", "--data", "nets.py:data", *words]) == 1
    assert "does not take the images" in capsys.readouterr().err  # sized has no Flatten
    assert main(["evaluate", "nets.py:net", "--data", "nets.py:data", *words]) == 0
    said = capsys.readouterr().out
    assert "FGSM, eps 8/255 (linf)" in said and "APGD 2, ce, eps 8/255" in said
    assert main(["evaluate", "nets.py:ten", "--data", "mnist-mini", "--images", "20", *words]) == 0
    assert "FGSM, eps 0.3 (linf)" in capsys.readouterr().out


def test_other_models_and_images_never_replace_results(here, capsys):
    words = ["--data", "three.npz", "--out", "mine"]
    assert main(["evaluate", "nets.py:net", *words, *FGSM]) == 0
    assert main(["extract", "nets.py:net", *words, "--no-progress"]) == 0
    before = {path: path.read_bytes() for path in (here / "mine").iterdir()}
    np.savez(here / "others.npz", images=255 - mnist_images(12).images.numpy(), labels=np.arange(12) % 3)
    for command in (["evaluate", *FGSM], ["extract", "--no-progress"]):
        for changed in (["nets.py:net", "--data", "others.npz", "--out", "mine"],
                        ["nets.py:net", *words, "--mean", "0.5", "--std", "0.5"]):  # fmt: skip
            assert main([command[0], *changed, *command[1:]]) == 1
            assert "holds results of another model or of other images. Choose another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (here / "mine").iterdir()} == before


def test_all_models_are_opened_before_one_is_measured_and_have_a_folder_each(here, capsys, monkeypatch):
    words = ["--data", "three.npz", "--out", "mine", *FGSM]
    with monkeypatch.context() as patched:
        patched.setattr("analysis.scales.accuracy.evaluate", lambda *_, **__: pytest.fail("this takes time"))
        assert main(["evaluate", "nets.py:net", "nets.py:nothing", *words]) == 1
    assert "Got NoneType" in capsys.readouterr().err
    assert main(["evaluate", "nets.py:net", "nets.py:ten", *words]) == 0
    assert "| net | " in capsys.readouterr().out
    assert [record["model"]["name"] for record in stored(here, "mine/*/accuracy-test.json").values()] == ["net", "ten"]


def test_a_download_that_fails_says_what_to_do(monkeypatch, capsys):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    assert main(["evaluate", "torchvision:squeezenet1_1@DEFAULT", "--data", "three.npz"]) == 1
    assert "cannot be downloaded: no network Take a file of them, --weights FILE" in capsys.readouterr().err


def test_several_layers_are_extracted_in_one_pass(here, capsys):
    words = ["--data", "three.npz", "--eps", "0.1", "--layer", "penultimate", "1:flatten", "--no-progress"]
    assert main(["extract", "nets.py:net", *words]) == 0
    _, *paths = capsys.readouterr().out.splitlines()
    assert [path.rpartition("/")[2] for path in paths] == [
        "representations-eps0.1.safetensors", "representations-eps0.1-1-flatten.safetensors"
    ]  # fmt: skip
    sets = [RepresentationSet.load(path) for path in paths]
    assert [reps.meta["layer"] for reps in sets] == ["penultimate", "1:flatten"]
    assert all(reps.meta["data_name"] == "three.npz" and reps.features.shape == (12, 16) for reps in sets)
    assert all(reps.adv_images.dtype == np.uint8 for reps in sets)
    assert sets[0].meta["attack"]["eps"] == 0.1 and sets[0].meta["model"]["name"] == "net"


def test_a_layer_that_is_not_there_is_named_and_nothing_is_written(here, capsys):
    assert main(["extract", "nets.py:net", "--data", "three.npz", "--layer", "fc", "--no-progress"]) == 1
    assert "fc" in capsys.readouterr().err and not list(here.glob("results/**/*.safetensors"))


def test_one_image_is_enough(here, capsys):
    np.savez(here / "one.npz", images=mnist_images(1).images.numpy(), labels=[2])
    assert main(["evaluate", "nets.py:net", "--data", "one.npz", *FGSM]) == 0
    assert main(["extract", "nets.py:net", "--data", "one.npz", "--no-progress"]) == 0


def test_the_explorer_shows_several_models_with_their_images(here, capsys):
    words = ["--data", "three.npz", "--methods", "pca", "--no-open", "--no-progress"]
    (here / "other.py").write_text(NETS.replace("manual_seed(0)", "manual_seed(5)"))
    assert main(["explore", "nets.py:net", "other.py:net", *words, "--out", "page.html", "--layer", "logits"]) == 0
    said = capsys.readouterr().out
    assert "No clean images" not in said and "page.html" in said
    assert "nets.py:net" in (here / "page.html").read_text(encoding="utf-8")


def test_a_full_disk_is_said_first_and_loses_nothing(here, capsys, monkeypatch):
    words = ["nets.py:net", "--data", "three.npz", "--out", "mine"]
    assert main(["evaluate", *words, *FGSM]) == 0
    before = {path: path.read_bytes() for path in (here / "mine").iterdir()}
    capsys.readouterr()
    slower = ["--attack.steps", "3", "--no-progress"]
    with file_size_limit(100):  # there is room for the trial, and none for the result
        assert main(["evaluate", *words, *slower]) == 1
    assert "could not write mine/accuracy-test" in capsys.readouterr().err
    monkeypatch.setattr("analysis.scales.accuracy.evaluate", lambda *_, **__: pytest.fail("this takes time"))
    monkeypatch.setattr("analysis.command.measuring.extract", lambda *_, **__: pytest.fail("this takes time"))
    with file_size_limit(0):
        for command in (["evaluate", *words, *slower], ["extract", *words], ["explore", *words[:3], "--no-open"]):
            assert main(command) == 1
            assert "could not write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (here / "mine").iterdir()} == before


def test_the_commands_of_the_guide(here, capsys):
    page = (REPOSITORY / "docs/guide/own_model.md").read_text(encoding="utf-8")
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        if "network = " in code or "nets.py" in code:
            exec(code, names)
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("    tla ")]
    assert [words[0] for words in commands] == ["evaluate", "extract", "explore"]
    for words in commands:
        assert main([*words, "--no-progress"]) == 0, capsys.readouterr().err
    assert len(list(here.glob("results/net-*/mine.npz-*"))) == 1, "the three commands are of one model"
    assert len(list(here.glob("results/net-*/mine.npz-*/*"))) == 7


HELPED = """
from parts import SIGN
from torch import nn
import torch

class Signed(nn.Sequential):
    def forward(self, x):
        return SIGN * super().forward(x)

def net():
    torch.manual_seed(0)
    return Signed(nn.Flatten(), nn.Linear(784, 3))
"""


def with_helper(folder, sign):
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(HELPED)
    (folder / "parts.py").write_text(f"SIGN = {sign}\n")


@pytest.mark.parametrize("flag", [["--only", "PGD20"], ["--square", "0"], ["--restarts", "3"], ["--black-box", "a"]])
def test_an_attack_of_the_flags_and_options_of_the_table_do_not_go_together(here, capsys, flag):
    command = ["evaluate", "nets.py:net", "--data", "three.npz", *FGSM]
    assert main([*command, *flag]) == 1
    assert "--autoattack alone" in capsys.readouterr().err


def test_autoattack_stands_beside_an_attack_of_the_flags(here, capsys, monkeypatch):
    monkeypatch.setattr("tla_core.autoattack.AutoAttack.__call__", lambda self, model, images, labels, **_: images)
    assert main(["evaluate", "nets.py:net", "--data", "three.npz", "--autoattack", "4", *FGSM]) == 0
    assert re.search(r"AutoAttack .* 4 images", capsys.readouterr().out)


def test_files_of_two_folders_have_their_own_helpers(here):
    with_helper(here / "a", 1)
    with_helper(here / "b", -1)
    images = torch.rand(5, 1, 28, 28)
    first, second = (opened(f"{folder}/net.py:net").model.eval() for folder in "ab")
    assert torch.equal(first(images), -second(images))


def test_results_are_not_those_of_a_model_whose_helper_was_changed(here, capsys):
    with_helper(here / "a", 1)
    command = ["evaluate", "a/net.py:net", "--data", "three.npz", "--out", "out", *FGSM]
    assert main(command) == 0
    program = "import sys; from analysis.command.main import main; sys.exit(main(sys.argv[1:]))"
    call = [sys.executable, "-c", program, *command]
    assert subprocess.run(call, capture_output=True).returncode == 0  # the same model in another process
    with_helper(here / "a", -1)
    changed = subprocess.run(call, capture_output=True, text=True)
    assert changed.returncode == 1 and "something that it imports or reads has changed" in changed.stderr


def test_a_view_of_some_images_replaces_no_file_of_more(here):
    with_helper(here / "a", 1)
    assert main(["extract", "a/net.py:net", "--data", "three.npz", "--eps", "0.1", "--no-progress"]) == 0
    (path,) = here.glob("results/net-*/*/representations-*.safetensors")
    before = path.read_bytes()
    words = ["--data", "three.npz", "--eps", "0.1", "--points", "10", "--methods", "pca", "--out", "page.html"]
    assert main(["explore", "a/net.py:net", *words, "--no-progress", "--no-open"]) == 0
    assert path.read_bytes() == before and len(RepresentationSet.load(path)) == 12


# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = project_folder(tmp_path_factory.mktemp("project"))
    digits = mnist_images(80, "train")
    mine = ImageDataset(255 - digits.images, digits.labels, digits.class_names, "mine")
    tla.train(tiny_config("um", epochs=1), root / "runs/mini/mnist/um/seed0", dataset=digits, progress=False)
    tla.train(tiny_config("um", epochs=1), root / "runs/mine", dataset=mine, progress=False)
    return root


def test_a_run_on_other_images_leaves_its_own_results_alone(trained, here, capsys, monkeypatch):
    use_few_images(monkeypatch, n_test=30)
    monkeypatch.chdir(trained)
    run = "runs/mini/mnist/um/seed0"
    for words in ([run], [run, "--data", "mnist-mini"]):
        assert main(["evaluate", *words, *FGSM]) == 0
        assert "stored in results/mini/mnist/um/seed0/accuracy-test.safetensors" in capsys.readouterr().out
    own = (trained / "results/mini/mnist/um/seed0/accuracy-test.safetensors").read_bytes()
    np.savez(trained / "inverse.npz", images=255 - mnist_images(20).images.numpy(), labels=mnist_images(20).labels)
    assert main(["evaluate", run, "--data", "inverse.npz", *FGSM]) == 0
    assert "UM (sha256" in (said := capsys.readouterr().out) and "on inverse.npz test: 20 images" in said
    (folder,) = (trained / "results/mini/mnist/um/seed0").glob("on-inverse.npz-*")
    assert json.loads((folder / "accuracy-test.json").read_text())["data_name"] == "inverse.npz"
    assert main(["extract", run, "--data", "inverse.npz", "--eps", "0.1", "--no-progress"]) == 0
    assert RepresentationSet.load(folder / "representations-eps0.1.safetensors").meta["data_name"] == "inverse.npz"
    assert main(["extract", run, "--layer", "logits", "--eps", "0.1", "--images", "10", "--no-progress"]) == 0
    assert (trained / "results/mini/mnist/um/seed0/representations-eps0.1-logits.safetensors").is_file()
    assert (trained / "results/mini/mnist/um/seed0/accuracy-test.safetensors").read_bytes() == own


def test_a_run_on_images_of_ones_own_is_measured_on_those_that_are_named_and_not_on_its_training_images(
    trained, here, capsys, monkeypatch
):
    monkeypatch.chdir(trained)
    digits = mnist_images(80, "train")
    inverse = {"images": 255 - digits.images.numpy(), "labels": digits.labels.numpy()}
    np.savez(trained / "trained.npz", **inverse)
    np.savez(trained / "part.npz", **{name: array[:20] for name, array in inverse.items()})
    assert main(["evaluate", "runs/mine", *FGSM]) == 1
    assert "`tla evaluate RUN --data DATA`" in capsys.readouterr().err
    assert main(["evaluate", "runs/mine", "--data", "trained.npz", *FGSM]) == 1
    assert "runs/mine was trained on these very images" in capsys.readouterr().err
    assert main(["evaluate", "runs/mine", "--data", "part.npz", *FGSM]) == 0


def test_a_run_has_weights_and_normalisation_of_its_own(trained, capsys):
    run = str(trained / "runs/mini/mnist/um/seed0")
    for flag in (["--weights", "x.pt"], ["--mean", "0.5", "--std", "0.5"]):
        assert main(["evaluate", run, "--data", "mnist-mini", *flag]) == 1
        assert f"which has weights and normalisation of its own: leave {flag[0]} out" in capsys.readouterr().err


def test_runs_and_other_models_side_by_side(trained, here, capsys, monkeypatch):
    use_few_images(monkeypatch, n_test=30)
    (trained / "nets.py").write_text(NETS)
    monkeypatch.chdir(trained)
    run = "runs/mini/mnist/um/seed0"
    options = ["--data", "mnist-mini", "--mean", "0.5", "--std", "0.5"]  # of the network; the run has its own
    assert main(["evaluate", run, "nets.py:ten", *options, *FGSM]) == 0
    folders = {path.as_posix() for path in stored(trained)}
    assert "results/mini/mnist/um/seed0" in folders and any(each.startswith("results/ten-") for each in folders)
    words = [*options, "--methods", "pca", "--no-open", "--no-progress"]
    assert main(["explore", run, "nets.py:ten", *words, "--points", "20", "--out", "page.html"]) == 0
    assert "No clean images" not in capsys.readouterr().out
    # Of the run no more was made than could be shown; what is stored of it in full later goes with what is not.
    assert main(["extract", run, "--no-progress"]) == 0
    assert main(["explore", run, "nets.py:ten", *words, "--points", "20", "--out", "page.html"]) == 0


def test_a_run_of_a_network_of_ones_own_is_named_by_what_makes_it(here, capsys):
    digits = mnist_images(80, "train")
    network = opened("nets.py:ten").model.model
    tla.train(tiny_config("um", epochs=1), here / "run", model=network, dataset=digits, progress=False)
    assert main(["evaluate", "run", "--data", "mnist-mini", *FGSM]) == 1
    assert "name what makes it: file.py:function --weights run --data DATA" in capsys.readouterr().err
    loaded = opened("nets.py:ten", weights=here / "run").model.model
    selected = tla.load_model(here / "run", model=opened("nets.py:ten").model.model)
    assert state_digest(loaded) == state_digest(selected)


def test_what_data_names_fits_a_model_only_with_its_number_of_classes():
    model = opened("nets.py:net")
    with pytest.raises(ValueError, match=r"nets.py:net: labels must be in 0..2"):
        check_fits(model, load_dataset("mnist-mini", "test"))
    check_fits(opened("nets.py:ten"), data("three.npz"))  # without names there may be classes without images
    with pytest.raises(ValueError, match=r"nets.py:net has no images of its own"):
        open_data(OWN_DATA, model)
