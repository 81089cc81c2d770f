"""What a scale consists of: variants, sweeps, copies, what it hands on; and the scales of the repository."""

import dataclasses
from pathlib import Path

import pytest
from tiny import REPOSITORY, project_folder

from analysis.command import main as cli
from analysis.scales.plan import Plan
from analysis.scales.scale import Scale, accuracy_flags, load_scale
from tla_core.config import TrainConfig
from tla_core.dataset_files import CIFAR10_CLASSES, DIGITS
from tla_core.presets import METHODS
from tla_core.protocol import SWEEPS, sweep_configs

ROOT = Path("/project")
SHORT = {"epochs": 1, "iterations": 70}
CLASSES = {"mnist": DIGITS, "cifar10": CIFAR10_CLASSES}
SCALES = sorted(path.stem for path in (REPOSITORY / "workflow" / "scales").glob("*.yaml"))


def make_scale(name="mini", **changes):
    values = {
        "datasets": ("mnist",), "methods": METHODS, "seeds": (0,), "notebooks": (),
        "points_per_class": {"clean": 36, "adversarial": 12},
    }  # fmt: skip
    return Scale(**{"name": name, "root": ROOT, **values, **changes})


def three_datasets(**changes):
    return make_scale("small", datasets=("mnist", "cifar10", "tiny-imagenet"), **changes)


# Variants -------------------------------------------------------------------------------------------------------------


def test_a_variant_has_the_preset_then_overrides_then_those_of_all_variants_then_its_own():
    own = {"margin": 0.1, "lambda_triplet": 0.3, "lambda_norm": 0.01, "epochs": 4}
    scale = make_scale(overrides={"tla": own}, variant_overrides={"lambda_triplet": 0.4, "margin": 0.2, "epochs": 2})
    preset = TrainConfig.preset("mini/mnist/tla", seed=3)
    assert scale.config("mnist", "tla", 3) == dataclasses.replace(preset, **own)
    assert scale.config("mnist", "tla@margin=0.3", 3) == dataclasses.replace(
        preset, margin=0.3, lambda_triplet=0.4, lambda_norm=0.01, epochs=2
    )
    assert scale.config("mnist", "at@margin=0.3", 3).lambda_norm == TrainConfig.preset("mini/mnist/at").lambda_norm


def test_an_independent_copy_differs_in_its_seed_alone_and_a_short_one_in_its_length():
    scale = make_scale()
    assert scale.config("mnist", "at@copy", 1) == scale.config("mnist", "at", 1) != scale.config("mnist", "at")
    shorter = make_scale(variant_overrides=SHORT)
    assert shorter.config("mnist", "at") == scale.config("mnist", "at")
    for variant in ("at@short", "at@copy"):
        assert shorter.config("mnist", variant) == dataclasses.replace(scale.config("mnist", "at"), **SHORT)


def test_variants_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"unknown variant 'long'\. Expected copy or short"):
        make_scale().config("mnist", "tla@long")
    with pytest.raises(ValueError, match="variant_overrides hold an unknown field: marge"):
        make_scale(variant_overrides={"marge": 1}).config("mnist", "tla@copy")
    with pytest.raises(ValueError, match=r"margin must be a finite number, at least 0\. Got -1"):
        make_scale().config("mnist", "tla@margin=-1")


def test_a_variant_has_the_preset_of_its_method_and_a_folder_of_its_own():
    scale = make_scale("mine", presets="code")
    assert scale.preset("cifar10", "tla-rn@margin=0.1") == "code/cifar10/tla-rn"
    assert make_scale().preset("mnist", "tla") == "mini/mnist/tla"
    assert scale.run_dir("mnist", "tla@margin=0.1", 2) == ROOT / "runs/mine/mnist/tla@margin=0.1/seed2"
    assert scale.run_dir("mnist", "tla") == ROOT / "runs/mine/mnist/tla/seed0"


@pytest.mark.parametrize("method", ["um", "at@short", "tla@lambda_triplet=2,layer=lower", "tla@lambda_norm=1e-07"])
def test_the_flags_of_a_variant_give_its_settings_through_the_command_line(method, monkeypatch):
    """The identity decides whether a run is trained again, the flags what is trained: both must agree."""
    trained = []
    monkeypatch.setattr("tla_core.training.train", lambda config, out, **options: trained.append(config))
    scale = make_scale(overrides={"tla": {"attack": {"eps": "1/4"}}}, variant_overrides=SHORT)
    flags = scale.flags("mnist", method)
    assert cli.main(["train", scale.preset("mnist", method), "--seed", "0", "--out", "x", *flags]) == 0
    assert trained == [scale.config("mnist", method)]
    assert (flags == []) == (method == "um")


# Sweeps ---------------------------------------------------------------------------------------------------------------


def test_the_sweeps_of_tables_4_to_6_name_their_runs():
    scale = make_scale(variant_overrides=SHORT)
    two = "tla@lambda_triplet=2"
    assert scale.sweep("table4") == {
        0.0: "tla@lambda_triplet=0", 0.025: "tla@lambda_triplet=0.025", 0.5: "tla@short", 1.0: "tla@lambda_triplet=1",
        2.0: two, 4.0: "tla@lambda_triplet=4",
    }  # fmt: skip
    assert scale.sweep("table5") == {
        0.0: f"{two},margin=0", 0.025: f"{two},margin=0.025", 0.05: two, 0.1: f"{two},margin=0.1",
        0.2: f"{two},margin=0.2",
    }  # fmt: skip
    assert scale.sweep("table6") == {
        "lower": f"{two},layer=lower", "middle": f"{two},layer=middle", "higher": two, "logits": f"{two},layer=logits"
    }  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("shorter", [{}, SHORT])
@pytest.mark.parametrize(
    "overrides", [{}, {"lambda_triplet": 1.0, "margin": 0.1, "pool_size": 100, "layer": "logits", "lambda_norm": 0.01}]
)
def test_each_value_of_a_sweep_is_trained_with_itself_whatever_the_scale_changes(name, shorter, overrides):
    scale = make_scale(variant_overrides=shorter, overrides={"tla": overrides})
    expected = sweep_configs(name, "mini/mnist/tla", **{**overrides, **SWEEPS[name].base, **shorter})
    found = [scale.config("mnist", method) for method in scale.sweep(name).values()]
    one_layer_two_names = {"higher": "penultimate"}
    assert found == [
        dataclasses.replace(config, layer=one_layer_two_names.get(config.layer, config.layer))
        for config in expected.values()
    ]
    assert len({config.identity for config in found}) == len(SWEEPS[name].values)


def test_a_sweep_has_the_seeds_that_a_scale_names_or_the_spread_of_the_main_runs():
    scale = make_scale(seeds=(0, 1, 2), variant_overrides=SHORT)
    assert scale.sweep_runs("tla@short") == [("mnist", "tla@short", 0)]
    assert scale.spread_runs() == [("mnist", "tla", seed) for seed in (0, 1, 2)]
    scale = make_scale(seeds=(0, 1, 2), sweep_seeds=(0, 1))
    assert [seed for *_, seed in scale.sweep_runs("tla")] == [0, 1] and scale.spread_runs() == []
    assert make_scale().spread_runs() == []  # of one seed there is no spread
    with pytest.raises(ValueError, match=r"sweep_seeds must be among the seeds of mnist\. Got \[3\]"):
        make_scale(sweep_seeds=(0, 3))


def test_what_variants_have_otherwise_is_for_the_dataset_of_the_sweeps():
    scale = three_datasets(variant_overrides=SHORT)
    assert scale.config("mnist", "at@copy").iterations == 70
    assert scale.config("cifar10", "at@copy") == scale.config("cifar10", "at")


def test_without_a_shorter_training_a_sweep_takes_the_main_run():
    """A second training with the same settings, at the scale `paper`, would take a day and a half."""
    scale = make_scale()
    assert scale.sweep("table4")[0.5] == "tla" and scale.config("mnist", "tla") == scale.config("mnist", "tla@short")
    assert make_scale(variant_overrides=SHORT).sweep("table4")[0.5] == "tla@short"


def test_a_sweep_is_over_the_presets_of_its_dataset():
    scale = three_datasets(figure_datasets={"sweeps": "cifar10"})
    assert scale.config("cifar10", "tla").pool_size == 50 and scale.config("cifar10", "tla").margin == 0.03
    assert scale.sweep("table5")[0.05] == "tla@lambda_triplet=2,margin=0.05"


def test_unknown_sweeps_are_refused():
    with pytest.raises(ValueError, match=r"unknown sweep 'table9'\. There are: table4, table5, table6, pool_size"):
        make_scale().sweep("table9")
    with pytest.raises(ValueError, match=r"sweeps must be among table4, .*pool_size\. Got table9"):
        make_scale(sweeps=("table4", "table9"))


# Seeds and copies -----------------------------------------------------------------------------------------------------


def test_seeds_are_of_all_datasets_or_of_each():
    assert make_scale(seeds=(0, 1)).seeds_of("mnist") == (0, 1)
    scale = three_datasets(seeds={"mnist": [0, 1, 2], "cifar10": [3], "tiny-imagenet": [0]})
    assert [scale.seeds_of(dataset) for dataset in scale.datasets] == [(0, 1, 2), (3,), (0,)]
    for seeds in ({"mnist": [0]}, {"mnist": [0], "cifar10": [], "tiny-imagenet": [0]}, ()):
        with pytest.raises(ValueError, match=r"seeds must be a list, or one for each dataset \(mnist, cifar10, tiny"):
            three_datasets(seeds=seeds)


def test_the_runs_of_a_table_are_of_all_seeds_but_of_variants_only_where_a_scale_says_so():
    accuracy = {"methods": ["at", "tla-rn"]}
    scale = make_scale(seeds=(4, 1), accuracy=accuracy)
    assert scale.table_runs("mnist") == [("mnist", "at", 4), ("mnist", "at", 1), ("mnist", "tla-rn", 4)]
    scale = make_scale(seeds=(4, 1), accuracy={**accuracy, "variant_seeds": "all"})
    assert scale.table_runs("mnist")[-1] == ("mnist", "tla-rn", 1)
    with pytest.raises(ValueError, match=r"variant_seeds must be first or all\. Got 'some'"):
        make_scale(accuracy={"variant_seeds": "some"})


def test_the_first_seed_has_all_columns_and_the_others_those_that_are_named():
    accuracy = {"autoattack": 9, "black_box": {"variant": "", "seed": 1, "methods": ["at"]}, "other_seeds": ["PGD40"]}
    scale = make_scale(seeds=(0, 1), accuracy=accuracy | {"strongest": {"images": 7, "targets": 2}})
    assert scale.accuracy_options("mnist", "at", 0) | {"images": 0} == {
        "images": 0, "long_images": None, "restarts": None, "strongest_images": 7, "strongest_steps": None,
        "strongest_targets": 2, "only": (), "square": 0, "autoattack": 9, "black_box": ("at", 1),
    }  # fmt: skip
    found = scale.accuracy_options("mnist", "at", 1)
    assert found["only"] == ("PGD40",) and not found["autoattack"] and not found["black_box"]
    assert scale.accuracy_options("mnist", "tla", 0)["black_box"] is None  # which has no copy
    found = scale.accuracy_options("mnist", "at", 2)  # a run that is not in the table
    assert found["only"] == ("PGD100", "APGD-CE", "APGD-T")


def test_of_other_seeds_representations_are_limited_and_no_landscape_is_drawn():
    scale = make_scale(seeds=(3, 1), analysis_images={"mnist": 100})
    assert [scale.images_at("mnist", "at", None, seed) for seed in (None, 3, 1)] == [None, None, 100]
    assert scale.landscape_of("mnist") == scale.landscape_of("mnist", 3) == scale.landscape
    assert scale.landscape_of("mnist", 1) == {**scale.landscape, "images": 0}


def test_the_copy_of_a_method():
    for changes in ({}, {"accuracy": {"black_box": None}}):
        assert make_scale(**changes).copy_of("mnist", "at") is None
    named = make_scale(accuracy={"black_box": {"variant": "copy", "seed": 1}})
    assert named.copy_of("mnist", "tla-rn") == ("tla-rn@copy", 1)
    assert make_scale(accuracy={"black_box": {"seed": "3"}}).copy_of("mnist", "at") == ("at", 3)


def test_a_copy_that_would_go_on_from_at_is_refused():
    copy = {"black_box": {"variant": "copy", "seed": 1}}
    with pytest.raises(ValueError, match=r"independent: none goes on from AT\. Got um@copy"):
        make_scale(accuracy=copy, variant_overrides={"fine_tune": True})


def test_images_of_the_analysis_are_limited_but_for_the_maps():
    scale = three_datasets(analysis_images={"mnist": 2000, "cifar10": 1000}, figure_datasets={"maps": "cifar10"})
    assert [scale.images_at("mnist", "at", eps) for eps in (None, 0.03, 0.3)] == [2000] * 3
    levels = (None, 0.0313725, 8 / 255, 25 / 255)
    assert [scale.images_at("cifar10", "at", eps) for eps in levels] == [None] * 3 + [1000]
    assert scale.images_at("cifar10", "tla@margin=0.1") == 1000  # of which no map is drawn
    assert scale.images_at("tiny-imagenet", "at", 8 / 255) is None
    with pytest.raises(ValueError, match=r"figures need datasets of the scale .*\['svhn'\]"):
        three_datasets(analysis_images={"svhn": 5})


def test_copies_and_attacks_of_some_datasets():
    copies = {"mnist": {"variant": "", "seed": 1}, "cifar10": {"variant": "short", "seed": 2}}
    scale = three_datasets(accuracy={"black_box": copies})
    found = [scale.copy_of(dataset, "at") for dataset in scale.datasets]
    assert found == [("at", 1), ("at@short", 2), None]
    some = three_datasets(accuracy={"autoattack": {"mnist": 1000, "tiny-imagenet": 500}})
    assert [some.autoattack_images(dataset, "tla") for dataset in some.datasets] == [1000, None, 500]
    assert some.autoattack_images("mnist", "tla-rn") is None
    assert three_datasets(accuracy={"autoattack": 10}).autoattack_images("cifar10", "um") == 10
    assert three_datasets().autoattack_images("mnist", "um") is None
    assert three_datasets(accuracy={"methods": ["um"]}).table_methods("cifar10") == ("um",)
    named = three_datasets(accuracy={"methods": {"mnist": ["um", "tla-rn"]}})
    assert named.table_methods("mnist") == ("um", "tla-rn") and named.table_methods("cifar10") == named.methods
    for changes in (
        {"accuracy": {"black_box": {"svhn": {"seed": 1}}}},
        {"accuracy": {"autoattack": {"svhn": 5}}},
        {"accuracy": {"methods": {"svhn": ["um"]}}},
    ):
        with pytest.raises(ValueError, match=r"black_box, autoattack and methods need datasets .*\['svhn'\]"):
            three_datasets(**changes)


# Datasets -------------------------------------------------------------------------------------------------------------


def test_figures_show_their_dataset_and_by_default_the_first():
    scale = three_datasets(figure_datasets={"maps": "cifar10"})
    assert [scale.dataset_of(kind) for kind in ("maps", "landscapes", "sweeps")] == ["cifar10", "mnist", "mnist"]


def test_the_scales_name_of_the_dataset_of_a_run():
    assert make_scale().dataset_of_run("mnist-mini") == "mnist"
    found = [three_datasets().dataset_of_run(name) for name in ("mnist", "cifar10-jpeg", "tiny-imagenet")]
    assert found == ["mnist", "cifar10", "tiny-imagenet"]
    assert make_scale().dataset_of_run("/my/images") == "/my/images"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"figure_datasets": {"maps": "cifar10"}},
            r"figures need datasets of the scale \(mnist\)\. Got \['cifar10'\]",
        ),
        ({"class_pairs": {"cifar10": [["frog", "horse"]]}}, r"figures need datasets .*Got \['cifar10'\]"),
        (
            {"figure_datasets": {"map": "mnist"}},
            r"figure_datasets must be of maps, landscapes, sweeps\. Got map\.",
        ),
    ],
)
def test_figures_of_other_datasets_or_kinds_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_scale(**changes)


# What is handed on ----------------------------------------------------------------------------------------------------


def test_settings_of_maps():
    scale = three_datasets(class_pairs={"mnist": [["4", "9"]], "cifar10": []}, pair_points=50, tsne_iterations=300)
    assert scale.map_settings() == {"n_clean": 36, "n_adversarial": 12, "n_iter": 300}
    assert scale.pair_settings("mnist") == {"pairs": [["4", "9"]], "n_clean": 50, "n_iter": 300}
    assert scale.pair_settings("cifar10") is scale.pair_settings("tiny-imagenet") is None


@pytest.mark.parametrize(
    ("accuracy", "flags"),
    [
        ({}, "--square 0"),
        ({"long_images": None, "restarts": 20, "autoattack": 1000}, "--restarts 20 --square 0 --autoattack 1000"),
        ({"long_images": 500, "restarts": 3, "square": 90}, "--long-images 500 --restarts 3 --square 90"),
        (
            {"images": 9, "strongest": {"images": 8, "steps": 7, "targets": 6}},
            "--images 9 --strongest-images 8 --strongest-steps 7 --strongest-targets 6 --square 0",
        ),
    ],
)
def test_limits_of_evaluations_are_flags_that_the_command_line_has(accuracy, flags, tmp_path, capsys):
    scale = make_scale(accuracy=accuracy)
    found = accuracy_flags(scale.accuracy_options("mnist", "um", 0))
    assert found == flags.split()
    assert cli.main(["evaluate", str(tmp_path), *found]) == 1
    assert "holds no run" in capsys.readouterr().err
    assert make_scale().figures_dir == ROOT / "figures/mini"


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"a: [", b"just words", b"- 1", b"\xff\xfe\x00"])
def test_a_file_that_holds_no_keys_is_named(content, tmp_path):
    root = project_folder(tmp_path)
    (root / "workflow/scales/mine.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.yaml (cannot be read as YAML|must hold keys)"):
        load_scale("mine", root)


def test_a_key_without_a_value_counts_as_missing(tmp_path):
    root = project_folder(tmp_path, overrides=None, variant_overrides=None, accuracy=None, tsne_iterations=None)
    scale = load_scale("mini", root)
    assert scale == dataclasses.replace(scale, overrides={}, variant_overrides={}, accuracy={}, tsne_iterations="auto")
    project_folder(tmp_path, seeds=None)
    with pytest.raises(ValueError, match=r"mini\.yaml lacks seeds\."):
        load_scale("mini", root)


def test_lists_are_read_as_tuples_and_what_is_inside_as_it_is(tmp_path):
    changes = {
        "sweeps": ["table4"], "class_pairs": {"mnist": [["4", "9"]]}, "seeds": {"mnist": [0, 1]}, "pair_points": 7,
    }  # fmt: skip
    scale = load_scale("mini", project_folder(tmp_path, **changes))
    assert scale.methods == ("um", "tla") and scale.sweeps == ("table4",) and scale.seeds_of("mnist") == (0, 1)
    assert scale.class_pairs == changes["class_pairs"] and scale.pair_points == 7


def all_runs(scale):
    """Dataset, method and seed of every run that a scale names; what for -> runs."""
    table = [run for d in scale.datasets for run in scale.table_runs(d)]
    return {
        "main": [(d, m, s) for d in scale.datasets for m in scale.methods for s in scale.seeds_of(d)],
        "table": table,
        "copies": [(d, *scale.copy_of(d, m)) for d, m, s in table if s == scale.seeds_of(d)[0] and scale.copy_of(d, m)],
        "sweeps": [run for name in scale.sweeps for m in scale.sweep(name).values() for run in scale.sweep_runs(m)],
    }


@pytest.mark.parametrize("name", SCALES)
def test_every_run_of_a_scale_of_the_repository_has_valid_settings(name):
    scale = load_scale(name, REPOSITORY)
    runs = all_runs(scale)
    kinds = {"main", "table"} if name == "medium" else set(runs)
    assert {kind for kind, found in runs.items() if found} == kinds
    distinct = sorted({run for found in runs.values() for run in found})
    configs = {run: scale.config(*run) for run in distinct}
    assert len({scale.run_dir(*run) for run in distinct}) == len(distinct)
    for (dataset, method, seed), config in configs.items():
        assert config.seed == seed and config.method == method.partition("@")[0]
        assert scale.dataset_of_run(config.dataset) == dataset
    # The example of a black-box attack is not made with the model that it attacks.
    for dataset, method, seed in runs["table"]:
        if copy := scale.accuracy_options(dataset, method, seed)["black_box"]:
            assert configs[dataset, *copy].identity != configs[dataset, method, seed].identity
    # Runs of one kind are no accidental repetitions of each other.
    for kind, found in runs.items():
        assert len({configs[run].identity for run in found}) == len(set(found)), kind


@pytest.mark.parametrize("name", SCALES)
def test_settings_of_a_scale_of_the_repository_are_complete(name):
    scale = load_scale(name, REPOSITORY)
    assert set(scale.points_per_class) == {"clean", "adversarial"}
    assert set(scale.landscape) == {"images", "resolution", "radius", "rise"}
    assert set(scale.landscape["rise"]) == {"images", "resolution"}
    keys = {"methods", "long_images", "restarts", "autoattack", "black_box"}
    others = {"variant_seeds", "other_seeds", "images", "strongest", "square", "sweep_images"}
    assert keys <= set(scale.accuracy) <= keys | others
    assert scale.pair_settings(scale.dataset_of("maps"))
    for dataset, pairs in scale.class_pairs.items():
        assert all(len(set(pair)) == 2 and set(pair) <= set(CLASSES[dataset]) for pair in pairs)


def test_at_mini_and_small_sweeps_go_on_from_at_for_a_quarter_of_the_training_at_the_most():
    for name in ("mini", "small"):
        scale = load_scale(name, REPOSITORY)
        for dataset, method, seed in all_runs(scale)["sweeps"]:
            main, variant = scale.config(dataset, "tla", seed), scale.config(dataset, method, seed)
            assert variant.fine_tune and not main.fine_tune
            images = {"mnist-mini": 5000, "mnist": 60_000}[main.dataset] - main.holdout
            steps = variant.iterations or variant.epochs * (images // main.batch_size)
            assert 0 < steps <= main.epochs * (images // main.batch_size) / 4
            assert variant.learning_rate < main.learning_rate


# One's own ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["mnist", "cats"]}, r"datasets: there is no 'cats'; expected mnist, or a folder .*images/cats"),
        ({"datasets": {"cats": {"foldr": "x"}}}, r"datasets: cats must have folder, and perhaps like. Got {.foldr"),
        ({"datasets": {"cats": {"folder": "x"}}}, r"datasets: cats: folder: there is no .*x"),
        ({"datasets": {"cats": {"folder": ".", "like": "dogs"}}}, "datasets: cats: like must be mnist. Got 'dogs'"),
        ({"datasets": []}, "datasets must name at least one. Got none"),
        ({"datasets": "mnist"}, "datasets must be a list or keys with values. Got 'mnist'"),
        ({"methods": ["um", "mine"]}, r"methods: there is no .mine.; expected um, at, .*or a model of your own"),
        ({"methods": {"um": None, "mine": {"modl": "x"}}}, "methods: mine must have model, and perhaps dataset"),
        ({"methods": ["um", {"mine": {"model": "a:b", "dataset": "x"}}]}, "methods: mine: dataset must be mnist"),
        ({"methods": ["um", {"tla": {"model": "a:b"}}]}, "methods: tla is a method that there is"),
        ({"presets": "none"}, r"presets: there are none called .none., .* expected a line such as `presets: mini`"),
        ({"points_per_class": 5}, "points_per_class must be keys with values. Got 5"),
        ({"overrides": {"tla": {"marge": 1}}}, "overrides of tla hold an unknown field: marge"),
        ({"seeds": {"cats": [0]}}, r"seeds must be a list, or one for each dataset \(mnist\)"),
    ],
)
def test_a_mistake_in_a_scales_file_is_one_line_that_names_the_key(changes, message, tmp_path):
    root = project_folder(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"^mini\.yaml: " + message) as error:
        load_scale("mini", root)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_folder_of_images_is_a_dataset_of_a_scale(tmp_path):
    (tmp_path / "images").mkdir()
    root = project_folder(tmp_path, datasets=["mnist", {"mine": {"folder": "images"}}])
    scale = load_scale("mini", root)
    assert scale.datasets == ("mnist", "mine") and scale.preset("mine", "tla") == "mini/mnist/tla"
    folder = str((tmp_path / "images").resolve())
    assert scale.config("mine", "tla").dataset == folder and scale.dataset_of_run(folder) == "mine"
    assert scale.flags("mine", "tla")[:2] == ["--dataset", folder]
    command = Plan(scale).model(("mine", "tla", 0)).command
    assert f"--out runs/mini/mine/tla/seed0 --dataset {folder}" in command


def test_a_model_of_ones_own_is_no_training_of_a_scale(tmp_path):
    root = project_folder(tmp_path, methods=["um", "tla", {"Mine": {"model": "nets.py:build"}}])
    scale = load_scale("mini", root)
    assert scale.methods == ("um", "tla")
    assert scale.own_methods == {"Mine": {"model": "nets.py:build", "dataset": "mnist"}}
    assert not any("Mine" in path for path in Plan(scale).artefacts)
