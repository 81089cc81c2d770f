"""`analysis.report`: its numbers are those of the functions, its page needs nothing, and it says what is not to be
believed. Two small networks on forty digits: seconds."""

import copy
import functools
import itertools
import json
import re
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from oracles import distance, ratio_per_class
from oracles import linear_cka as naive_linear_cka
from sklearn.metrics import confusion_matrix, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tiny import mnist_images, tiny_lenet, trained
from torch import nn

import analysis
import tla_core as tla
from analysis.command.main import main
from analysis.reports import accuracies, making, measure, pictures, trust
from analysis.reports.accuracies import attacks_on_all, main_attack
from analysis.reports.depth import blocks_of
from analysis.reports.inputs import chosen_images
from analysis.reports.numbers import schema
from analysis.representations import RepresentationSet

EPS = 0.1
pytestmark = pytest.mark.filterwarnings("ignore:.*training mode")


@functools.cache
def _trained(seed):
    torch.manual_seed(seed)
    return trained(tiny_lenet(seed))


def network(seed=0):
    """A trained network of one's own: a copy, since training each time would be a third of these tests."""
    return copy.deepcopy(_trained(seed))


class Scaled(nn.Module):
    """Logits so far apart that the cross-entropy has no gradient in float32."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 1e5 * self.inner(x)


class Named(nn.Sequential):
    """Knows what its outputs are called."""

    class_names = ("owl", "cat", "dog")

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 3))


@pytest.fixture
def without_figures(monkeypatch):
    """For reports of which nobody looks at the figures: drawing them takes longer than all that is measured."""
    monkeypatch.setattr(pictures, "_figure", lambda *_: "")
    monkeypatch.setattr(measure, "LANDSCAPE_POINTS", 5)


@pytest.fixture(scope="module")
def models():
    return {"<b>first</b>": network(0), "second": network(2)}


@pytest.fixture(scope="module")
def small(tmp_path_factory, models):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LANDSCAPE_POINTS", 5)
        # Its thousands of queries have tests of their own.
        shift = lambda self, model, x, y: (x + EPS).clamp(0, 1)  # noqa: E731
        patch.setattr(accuracies.AutoAttack, "__call__", shift)
        folder = tmp_path_factory.mktemp("report")
        yield analysis.report(models, mnist_images(200), eps=EPS, out=folder, n_images=40, autoattack=4)


@pytest.fixture(scope="module")
def numbers(small):
    return json.loads(small.json_path.read_text())


def shown(numbers):
    data, rows = mnist_images(200), torch.tensor(numbers["data"]["rows"])
    return data.images[rows], data.labels[rows]


def reps_of(small, name):
    (path,) = [path for path in (small.path.parent / "parts").glob("*/representations.safetensors")
               if RepresentationSet.load(path).meta["model"] == name]  # fmt: skip
    return RepresentationSet.load(path)


# Numbers --------------------------------------------------------------------------------------------------------------


def test_the_json_keeps_to_its_published_schema(numbers):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(numbers, schema())
    assert list(numbers["models"]) == ["<b>first</b>", "second"] and numbers["left_out"] == []


def test_accuracies_are_those_of_evaluate(numbers, models):
    attacks = attacks_on_all(main_attack("linf", EPS))
    images, labels = shown(numbers)
    for name, model in models.items():
        result = tla.evaluate(model, images, labels, attacks, checks=False)
        columns = numbers["models"][name]["accuracies"]
        for column in ("clean", *attacks):
            assert columns[column]["accuracy"] == pytest.approx(result.accuracy[column])
            assert columns[column]["standard_error"] == pytest.approx(result.standard_error[column])
        worst = torch.stack(list(result.correct.values())).all(0).double().mean().item()
        assert columns["strongest"]["accuracy"] == pytest.approx(worst)
        assert columns["AutoAttack"]["images"] == 4
        curve = numbers["models"][name]["curve"]
        assert [level["eps"] for level in curve] == pytest.approx([0, 0.025, 0.05, 0.1, 0.2, 0.4])
        assert curve[3]["accuracy"] == pytest.approx(result.accuracy["PGD-20"])


def test_representations_are_those_of_extract_and_of_the_oracles(small, numbers, models):
    images, labels = shown(numbers)
    rows = torch.tensor(numbers["data"]["rows"])
    for name, model in models.items():
        stored, entry = reps_of(small, name), numbers["models"][name]
        reps = analysis.extract(model, images, labels, attack=main_attack("linf", EPS), indices=rows)
        np.testing.assert_allclose(stored.adv_features, reps.adv_features, atol=1e-5)
        of_shown = ratio_per_class(reps.adv_features, reps.labels, reps.features, reps.labels, "angular", 10)
        own = [distance(*pair, "angular") for pair in zip(reps.features, reps.adv_features, strict=True)]
        for k, found in enumerate(entry["ratios"]["r_prime_by_class"]):
            # Of the 20 images of a class that were given 4 are taken: the own clean image is one of 4, not one of 20.
            in_class = np.flatnonzero(reps.labels == k)
            clean = [reps.features[row] for row in in_class]
            inner = np.mean([distance(a, b, "angular") for a, b in itertools.combinations(clean, 2)])
            own_k, n = np.mean([own[row] for row in in_class]), len(in_class)
            others = (n * of_shown[k] * inner - own_k) / (n - 1)
            assert found == pytest.approx((own_k + (5 * n - 1) * others) / (5 * n) / inner, rel=1e-4)
        whole = analysis.ratio_r_prime(reps, drawn_from=200).value
        assert entry["ratios"]["r_prime"] == pytest.approx(whole, rel=1e-4)
        r_by_class = [np.nan if each is None else each for each in entry["ratios"]["r_by_class"]]
        np.testing.assert_allclose(r_by_class, analysis.ratio_r(reps).per_class, rtol=1e-4)
        assert entry["destinations"] == confusion_matrix(reps.labels, reps.adv_predictions, labels=range(10)).tolist()
        layers = [record["layer"] for record in entry["depth"]]
        assert layers[-2:] == ["penultimate", "logits"] and "classifier" not in layers  # which are the logits
        block = entry["depth"][-2]
        assert block["cka"] == pytest.approx(naive_linear_cka(reps.features, reps.adv_features), rel=1e-4)
        assert block["r_prime"] == pytest.approx(entry["ratios"]["r_prime"], rel=1e-6)
        retrieved = analysis.retrieve(reps, k=3)
        assert entry["retrieval"]["adversarial_precision"] == pytest.approx(retrieved.adversarial.mean_precision)


def test_neighbours_of_a_block_and_detection_are_scikit_learns(small, numbers):
    for name in numbers["models"]:
        reps = reps_of(small, name)
        unit, adv = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (reps.features, reps.adv_features))
        right = []
        for row in range(len(reps)):
            others = np.arange(len(reps)) != row
            voters = KNeighborsClassifier(10, metric=lambda u, v: 1 - abs(u @ v)).fit(unit[others], reps.labels[others])
            near = voters.kneighbors(adv[row : row + 1])[1][0]
            votes = reps.labels[others][near]
            counts = np.bincount(votes)
            right.append(next(k for k in votes if counts[k] == counts.max()) == reps.labels[row])
        block = next(one for one in numbers["models"][name]["depth"] if one["layer"] == "penultimate")
        assert block["knn_adversarial"] == pytest.approx(np.mean(right))
        found = measure.detection_of_images(reps)
        entry = numbers["models"][name]["detection"]
        assert entry["auc"] == pytest.approx(roc_auc_score(found.misclassified, found.scores))


def test_models_side_by_side_have_the_same_images_and_their_cka(small, numbers):
    first, second = (reps_of(small, name) for name in numbers["models"])
    assert first.indices.tolist() == second.indices.tolist() == numbers["data"]["rows"]
    between = numbers["cka_between_models"]
    assert between["clean"][0][1] == pytest.approx(naive_linear_cka(first.features, second.features), rel=1e-6)
    assert between["adversarial"][1][1] == pytest.approx(1)


def test_images_are_drawn_evenly_from_the_classes_and_so_is_every_part():
    labels = np.repeat([0, 1, 2], [20, 40, 60])
    images = torch.zeros(120, 1, 4, 4, dtype=torch.uint8)
    data = chosen_images(images, labels, n_images=60, class_names=None)
    assert np.bincount(data.labels).tolist() == [10, 20, 30] and len(set(data.rows.tolist())) == 60
    assert (np.bincount(data.labels[data.part(12)], minlength=3) >= [1, 2, 4]).all()
    assert data.labels.tolist() == labels[data.rows].tolist()


# The page -------------------------------------------------------------------------------------------------------------


def test_the_page_needs_no_other_file_and_no_network_and_escapes_names(small):
    page = small.path.read_text()
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page))
    assert {link for link in links if not link.startswith("data:")} == {
        "explorer.html", "https://arxiv.org/abs/1902.06705", "https://arxiv.org/abs/2106.09947",
    }  # fmt: skip
    assert "<b>first</b>" not in page and "&lt;b&gt;first&lt;/b&gt;" in page
    assert "<script" not in page and "default-src 'none'" in page
    assert small.explorer.is_file() and "Left out:" not in page


def test_each_section_says_what_it_cannot(small):
    page = small.path.read_text()
    sections = re.findall(r'<section id="(\w+)">.*?<p class="about">(.*?)</p>', page, re.S)
    assert [key for key, _ in sections] == [
        "summary", "accuracies", "trust", "curve", "destinations", "depth", "ratios", "between", "maps", "retrieval",
        "landscape", "detection", "moves", "made",
    ]  # fmt: skip
    assert all(len(about) > 80 for _, about in sections)


def test_a_second_call_measures_nothing_again(small, models, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured again")

    pages = small.path.read_text()
    for name in ("evaluate", "model_checks"):
        monkeypatch.setattr(accuracies, name, refuse)
    for name in ("input_landscape", "map_class", "map_pair"):
        monkeypatch.setattr(measure, name, refuse)
    monkeypatch.setattr(measure, "LANDSCAPE_POINTS", 5)
    extract = measure.extract
    monkeypatch.setattr(measure, "extract", lambda *args, attack=None, **options: (
        refuse() if attack else extract(*args, attack=attack, **options)))  # fmt: skip
    again = analysis.report(models, mnist_images(200), eps=EPS, out=small.path.parent, n_images=40, autoattack=4)
    assert {**again.numbers, "made": 0} == {**small.numbers, "made": 0}
    assert without_time(again.path.read_text()) == without_time(pages)


def without_time(page):
    return re.sub(r"<td>\d+ s</td>", "", page)


def test_a_part_that_is_damaged_or_of_another_model_is_made_again(tmp_path, without_figures):
    data, options = mnist_images(60), {"eps": EPS, "out": tmp_path, "n_images": 20, "autoattack": 0, "explorer": False}
    model = network(0)
    first = analysis.report({"net": model}, data, **options)
    (stored,) = tmp_path.glob("parts/*/representations.safetensors")
    stored.write_bytes(stored.read_bytes()[:-7])
    again = analysis.report({"net": model}, data, **options)
    assert {**again.numbers, "made": 0} == {**first.numbers, "made": 0}
    (outcomes,) = tmp_path.glob("parts/*/accuracies.json")  # still JSON, with other outcomes
    outcomes.write_text(re.sub(r"\b(true|1)\b", "0", outcomes.read_text()))
    again = analysis.report({"net": model}, data, **options)
    assert {**again.numbers, "made": 0} == {**first.numbers, "made": 0}
    masked = analysis.report({"net": Scaled(model)}, data, **options)  # another model by the same name
    assert masked.numbers["models"]["net"]["weights_sha256"] != first.numbers["models"]["net"]["weights_sha256"]
    assert masked.numbers["models"]["net"]["trust"]["light"] == "red"


class Rounded(nn.Module):
    """Images are rounded; gradients pass the rounding, or do not."""

    def __init__(self, inner, passes):
        super().__init__()
        self.inner, self.passes = inner, passes

    def forward(self, x):
        rounded = torch.round(x * 4) / 4
        return self.inner(x + (rounded - x).detach() if self.passes else rounded)


def test_another_layer_and_other_gradients_are_measured_again(tmp_path, without_figures):
    data, options = mnist_images(60), {"eps": EPS, "n_images": 20, "autoattack": 0, "explorer": False}
    model = network(0)

    def numbers_of(network, folder, **changes):
        made = analysis.report({"net": network}, data, out=tmp_path / folder, **options, **changes)
        return made.numbers["models"]["net"]

    blocks = [record["layer"] for record in numbers_of(model, "one")["depth"]]
    for layer in ("logits", blocks[0]):
        again, fresh = (numbers_of(model, folder, layer=layer)["ratios"] for folder in ("one", f"fresh-{layer[:6]}"))
        assert again["r_prime"] == fresh["r_prime"]
    closed = numbers_of(Rounded(model, False), "two")["accuracies"]["PGD-20"]["accuracy"]
    opened = numbers_of(Rounded(model, True), "two")["accuracies"]["PGD-20"]["accuracy"]
    assert opened < closed


def test_a_class_without_a_ratio_leaves_the_page_whole(tmp_path):
    one = mnist_images(60).images[:1].repeat(12, 1, 1, 1)
    options = {"out": tmp_path, "autoattack": 0, "explorer": False}
    made = analysis.report({"net": network(0)}, one, np.arange(12) % 2, eps=EPS, **options)
    assert made.path.is_file() and all(each is None for each in made.numbers["models"]["net"]["ratios"]["r_by_class"])


def test_autoattack_on_all_images_counts_among_the_strongest(tmp_path, monkeypatch, without_figures):
    monkeypatch.setattr(accuracies.AutoAttack, "__call__", lambda self, model, images, labels, **_: 1 - images)
    options = {"eps": EPS, "out": tmp_path, "n_images": 20, "explorer": False}
    made = analysis.report({"net": network(0)}, mnist_images(60), autoattack=20, **options)
    columns = made.numbers["models"]["net"]["accuracies"]
    assert columns["AutoAttack"]["images"] == 20
    assert columns["strongest"]["accuracy"] <= columns["AutoAttack"]["accuracy"] < columns["PGD-20"]["accuracy"]
    assert made.numbers["models"]["net"]["summary"]["strongest"] == columns["strongest"]["accuracy"]
    assert "on a part" not in made.path.read_text()


def test_what_time_does_not_allow_is_said_and_comes_with_the_next_call(tmp_path, without_figures):
    options = {"eps": EPS, "out": tmp_path, "n_images": 20, "autoattack": 0, "explorer": False}
    short = analysis.report({"net": network(0)}, mnist_images(60), minutes=1e-6, **options)
    assert set(short.numbers["models"]["net"]["accuracies"]) == {"clean", "FGSM", "strongest"}
    assert any("minutes were over" in line for line in short.numbers["left_out"])
    assert "PGD-20, of net" in short.numbers["left_out"] and "minutes were over" in short.path.read_text()
    jsonschema.validate(json.loads(short.json_path.read_text()), schema())
    whole = analysis.report({"net": network(0)}, mnist_images(60), **options)
    assert "PGD-20" in whole.numbers["models"]["net"]["accuracies"] and whole.numbers["models"]["net"]["depth"]


def test_a_part_is_left_out_only_where_our_checks_refuse_the_data(tmp_path):
    run = making._Run(SimpleNamespace(left_out=[]), 0.0, None, 20, False)
    run.step("maps", lambda: analysis.project(np.zeros((3, 1))), "net")
    assert run.contents.left_out == [
        "maps of net: features has 1 column; expected 2 or more. Plot a single one directly."
    ]
    with pytest.raises(ValueError, match="could not be broadcast"):  # a mistake in the code
        run.step("maps", lambda: np.zeros(2) + np.zeros(3))


# Trust ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "status", "words"), [(0, "passed", "falls"), (120, "care", "finds nothing to break")])
def test_an_accuracy_that_no_eps_lowers_is_no_sign_of_robustness(left, status, words):
    clean = torch.arange(200) < 120
    evaluation = tla.Evaluation({"clean": clean, "FGSM": clean, "PGD-20": clean}, {}, {})
    curve = {0.0: clean, 0.1: clean, 0.4: torch.arange(200) < left}
    checklist = trust.judge(accuracies.Accuracies(evaluation, None, curve, [])).checklist
    (verdict,) = [each for each in checklist if each.question == "Does a larger eps break more?"]
    assert verdict.status == status and words in verdict.words


def test_masked_gradients_are_said_in_the_first_lines(tmp_path, without_figures):
    masked = {"scaled": Scaled(network(0)), "sound": network(0)}
    options = {"eps": EPS, "out": tmp_path, "n_images": 40, "autoattack": 0, "explorer": False}
    made = analysis.report(masked, mnist_images(200), **options)
    trust = {name: model["trust"] for name, model in made.numbers["models"].items()}
    assert trust["scaled"]["light"] == "red" and trust["sound"]["light"] != "red"
    page = made.path.read_text()
    first_lines = page[: page.index("<nav>")]
    assert "scaled: Do not believe these robust accuracies." in first_lines
    assert "a gradient attack does nothing there" in first_lines
    answers = {verdict["question"]: verdict for verdict in trust["scaled"]["checklist"]}
    assert answers["Is there a gradient, and is it the model's own?"]["status"] == "failed"
    assert "I1" in answers["Is there a gradient, and is it the model's own?"]["source"]


# Blocks ---------------------------------------------------------------------------------------------------------------


def test_blocks_of_networks():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)).eval()
    assert blocks_of(plain, image) == ["2", "4"]
    block = lambda n: nn.Sequential(nn.Conv2d(n, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())  # noqa: E731
    deep = nn.Sequential(block(3), block(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    assert blocks_of(deep, image) == ["0.2:mean", "2:mean", "4"]
    many = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(30)], nn.Flatten(), nn.Linear(192, 3)).eval()
    assert len(blocks_of(many, image, limit=5)) == 5
    assert blocks_of(torch.jit.trace(plain, torch.zeros(1, 3, 8, 8)), image) == []


# Bad input: before an attack runs -------------------------------------------------------------------------------------


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.flatten(1)) * float("nan")


IMAGES, LABELS = np.zeros((8, 1, 28, 28), np.uint8), np.arange(8) % 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images"),
        ({"images": IMAGES[:1], "labels": LABELS[:1]}, "two classes or more.* Got 1 images of 1 classes"),
        ({"labels": np.zeros(8, int)}, "two classes or more.* Got 8 images of 1 classes"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"eps": 0.0}, "eps must be a finite number, more than 0"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"n_images": 3}, "n_images must be a whole number of at least 4"),
        ({"minutes": 0}, "minutes must be a finite number, more than 0"),
        ({"models": {"net": Broken()}}, "net returns NaN or infinite logits for 8 of 8 images"),
        ({"models": {f"net {k}": nn.Flatten() for k in range(7)}}, "one to 6 models. Got 7"),
        ({"models": []}, "one to 6 models. Got 0"),
        ({"models": [("a", nn.Flatten()), ("a", nn.Flatten())]}, "different names. Got 'a' 2 times"),
        ({"models": {"": nn.Flatten()}}, "models must have names"),
        ({"class_names": ("cat", "dog", "owl")}, "784 outputs, and there are 3 names"),
        ({"layer": "head"}, "the model has no layer 'head'"),
        ({"models": {"net": Named()}, "class_names": ("cat", "dog", "owl")}, r"another order.*\['cat', 'dog', 'owl'\]"),
        ({"models": {"net": nn.Sequential(nn.Flatten(), nn.Linear(784, 1))}}, "net: labels must be in"),
    ],
)
def test_bad_input_is_refused_before_an_attack_runs(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(accuracies, "evaluate", lambda *_, **__: pytest.fail("an attack ran"))
    given = {"models": {"net": nn.Flatten()}, "images": torch.from_numpy(IMAGES), "labels": LABELS, "eps": EPS}
    given |= changes
    models, images, labels = (given.pop(key) for key in ("models", "images", "labels"))
    with pytest.raises(ValueError, match=message):
        analysis.report(models, images, labels, out=tmp_path / "out", **given)


def test_a_folder_that_cannot_be_written_is_named_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not write .*report\.json"):
        analysis.report(nn.Flatten(), torch.from_numpy(IMAGES), LABELS, eps=EPS, out=tmp_path / "file")


# On the command line --------------------------------------------------------------------------------------------------


def test_tla_report_takes_any_model_and_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10)).eval()\n"
    )
    data = mnist_images(40)
    np.savez(tmp_path / "digits.npz", images=data.images.numpy(), labels=data.labels.numpy())
    command = ["report", "nets.py:net", "--data", "digits.npz", "--eps", "8/255", "--out", "made", "--images", "20"]
    assert main([*command, "--autoattack", "0", "--no-explorer", "--no-progress"]) == 0
    said = capsys.readouterr().out
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["attack"]["eps"] == 8 / 255 and numbers["data"]["images"] == 20
    assert "report.html" in said and "strongest" in said
    assert main([*command[:-4], "--out", "other", "--norm", "linf", "--eps", "8"]) == 1
    assert "did you mean 8/255" in capsys.readouterr().err
