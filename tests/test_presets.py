"""The tables of settings against numbers transcribed by hand: none of those here is read out of presets.py."""

import dataclasses

import pytest
import torch

from analysis.paper.published import SWEPT_ACCURACIES
from tla_core.attack_config import AttackConfig
from tla_core.config import TrainConfig, fields_in_use
from tla_core.models import build_model
from tla_core.presets import list_presets, preset_fields, preset_sources
from tla_core.protocol import (
    ANALYSIS_ATTACKS,
    ANALYSIS_LEVELS,
    SWEEPS,
    accuracy_columns,
    analysis_attack,
    sweep_configs,
)

METHODS = ("um", "at", "alp", "tla", "tla-rn", "tla-sa")
PGD40 = AttackConfig(eps=0.3, step_size=0.01, steps=40)
PGD7 = AttackConfig(eps=8 / 255, step_size=2 / 255, steps=7)

# The supplement, from its text: C.1, Tables 1 and 2, Algorithm 1, and the caption of Table 6.
SUPPLEMENT = {
    "mnist": {
        "dataset": "mnist",
        "network": "lenet",  # "our modified LeNet model"
        "width": 1,
        "normalization": "none",  # Table 1, "which shows all the details"
        "epochs": 200,  # "We run the experiments for 200 epochs"
        "batch_size": 50,  # "All experiments are conducted with batch size 50"
        "optimizer": "adam",
        "learning_rate": 0.0001,  # "Adam with learning rate of 0.0001"
        "schedule": "constant",
        "label_smoothing": 0.1,  # "label smoothing with value equals to 0.1"
        "fine_tune": False,
        "lambda_alp": 0.5,  # "For ALP, we use 0.5"
        "lambda_triplet": 0.5,  # "we adopt lambda1 = 0.5, lambda2 = 0.001, margin 0.05,
        "lambda_norm": 0.001,
        "margin": 0.05,
        "pool_size": 50,  # mini-batch size for the negative sample selection as 50"
    },
    "cifar10": {
        "dataset": "cifar10",
        "network": "wrn-table2",
        "width": 1,
        "blocks": (6, 6, 6),  # Table 2, "x 6"
        "iterations": 55_000,  # "We run it for 55k iterations before stopping"
        "batch_size": 50,
        "optimizer": "sgd",  # "the same SGD optimization method"
        "learning_rate": 0.1,  # "we start with learning rate of 0.1
        "schedule": "steps",
        "milestones": (50_000 / 55_000,),  # and decrease it to 0.01 at 50k iterations"
        "label_smoothing": 0,  # "do not use label smoothing"
        "fine_tune": False,
        "lambda_alp": 0.5,
        "lambda_triplet": 2,  # "we adopt lambda1 = 2, lambda2 = 0.001, margin 0.03,
        "lambda_norm": 0.001,
        "margin": 0.03,
        "pool_size": 500,  # mini-batch size for the negative sample selection as 500"
    },
    "tiny-imagenet": {
        "dataset": "tiny-imagenet",
        "network": "resnet50",  # "the well studied Resnet-50 model", "a stride of 2 for the first convolution"
        "width": 1,
        "blocks": (3, 4, 6, 3),
        "epochs": 150,  # "We train it for 150 epochs"
        "batch_size": 32,  # "AT and ALP trained with batch size of 32"
        "augmentation": "crop-flip-saturation",  # "data augmentation (crop, flip, saturation, etc.)"
        "optimizer": "adam",
        "learning_rate": 0.1,  # "We start from learning rate of 0.1 and decrease the learning rate to
        "schedule": "steps",
        "milestones": (110 / 150, 130 / 150),  # 0.01 at the 110-th epochs and 0.001 at the 130th epochs"
        "label_smoothing": 0.1,  # "label smoothing with parameter equal to 0.1 across all of our experiments"
        "fine_tune": False,
        "lambda_alp": 0.5,
        "lambda_triplet": 0.2,  # "we adopt lambda1 = 0.2, lambda2 = 0.001, margin 0.01,
        "lambda_norm": 0.001,
        "margin": 0.01,
        "pool_size": 50,  # mini-batch size for the negative sample selection as 50"
    },
}
EVERY_DATASET = {
    "layer": "penultimate",  # Table 6: "our choice of the second to last layer"
    "positives": "class",  # Algorithm 1, line 3
    "negatives": "hardest",  # Algorithm 1, line 5
    "noise": "triplet",  # "We add uniform random noise to the clean images x"
}
# "For TLA training, we fine-tune on the AT model with batch size of 20": what C.1 says of AT's length and optimiser on
# Tiny-ImageNet is not said of TLA.
FINE_TUNED = {"fine_tune": True, "batch_size": 20}
NOT_OF_FINE_TUNING = {"epochs", "optimizer", "learning_rate", "schedule", "milestones"}

# The released configuration, from ../shared/method.md (sections 1 and 2).
CODE_EVERYWHERE = {
    "weight_decay": 2e-4, "noise": "own", "mining": "cosine", "norm_term": "mean-square", "schedule": "steps",
    "statistics": "all",  # one is_training flag for every pass
}  # fmt: skip
CODE = {
    "mnist": {"augmentation": "none", "lambda_norm": 1e-4, "lambda_feature": 0},
    "cifar10": {
        "network": "wrn-madry", "blocks": (5, 5, 5), "iterations": 80_000, "milestones": (50 / 80, 60 / 80),
        "normalization": "per-image", "augmentation": "crop-flip", "positives": "own+class", "own_margin_factor": 1,
        "lambda_feature": 0,
    },
    "tiny-imagenet": {
        "network": "preact-resnet50", "blocks": (2, 3, 5, 2), "normalization": "per-image", "optimizer": "sgd",
        "learning_rate": 1e-4, "milestones": (60_000 / 80_000,), "label_smoothing": 0, "lambda_triplet": 0.5,
        "margin": 0.02, "pool_size": 20, "positives": "own+class", "own_margin_factor": 0.6 / 0.02,
        "lambda_feature": 0.5,
    },
}  # fmt: skip
# The main text in its first version.
V1_EVERYWHERE = {"mining": "angular", "norm_term": "l2", "lambda_feature": 0}
V1 = {"mnist": {"attack": PGD40}, "cifar10": {"attack": PGD7}, "tiny-imagenet": {"attack": PGD7}}


def published(name, source):
    """What a source says of the dataset and method of a preset."""
    _, dataset, method = name.split("/")
    if source == "code":
        return CODE_EVERYWHERE | CODE[dataset]
    if source == "v1":
        return V1_EVERYWHERE | V1[dataset] | {"method": method}
    says = SUPPLEMENT[dataset] | EVERY_DATASET | {"method": method}
    if dataset == "tiny-imagenet" and method.startswith("tla"):
        says = {field: value for field, value in says.items() if field not in NOT_OF_FINE_TUNING} | FINE_TUNED
    return says


# Presets --------------------------------------------------------------------------------------------------------------


def test_there_is_a_preset_of_every_method_for_every_dataset_and_scale():
    groups = [
        "mini/mnist", "small/mnist", "small/cifar10", "small/tiny-imagenet", "medium/cifar10", "supplement/mnist",
        "supplement/cifar10", "supplement/tiny-imagenet", "code/mnist", "code/cifar10", "code/tiny-imagenet",
    ]  # fmt: skip
    assert list_presets() == tuple(f"{group}/{method}" for group in groups for method in METHODS)
    for name in list_presets():
        config = TrainConfig.preset(name)
        assert config.method == name.split("/")[2] and config.seed == 0


@pytest.mark.parametrize("name", list_presets())
def test_every_value_has_a_source_and_is_what_that_source_says(name):
    fields, sources = preset_fields(name), preset_sources(name)
    assert set(fields) == set(sources)
    assert set(sources.values()) <= {"supplement", "v1", "code", "ours"}
    for source in ("supplement", "v1", "code"):
        says = published(name, source)
        claimed = {field: value for field, value in fields.items() if sources[field] == source}
        assert claimed == {field: says[field] for field in claimed}


@pytest.mark.parametrize("dataset", SUPPLEMENT)
@pytest.mark.parametrize("method", METHODS)
def test_the_supplement_s_presets_are_the_supplement_to_the_letter(dataset, method):
    name = f"supplement/{dataset}/{method}"
    config, sources = TrainConfig.preset(name), preset_sources(name)
    for field, value in published(name, "supplement").items():
        if field in fields_in_use(config):
            assert getattr(config, field) == value
            assert field == "method" or sources[field] == "supplement"
    assert config.holdout == 0 and config.selection_attack == AttackConfig()


@pytest.mark.parametrize("dataset", CODE)
@pytest.mark.parametrize("method", METHODS)
def test_the_presets_of_the_released_configuration_have_all_that_it_says(dataset, method):
    name = f"code/{dataset}/{method}"
    config = TrainConfig.preset(name)
    says = {"weight_decay": 2e-4, **CODE[dataset]}
    if method.startswith("tla"):
        says |= CODE_EVERYWHERE
    if dataset == "tiny-imagenet" and not method.startswith("tla"):  # its optimiser is that of the fine-tuning
        says = {key: value for key, value in says.items() if key not in ("optimizer", "learning_rate", "milestones")}
    if "schedule" in says and dataset == "mnist":
        del says["schedule"]  # a constant rate there
    for field, value in says.items():
        if field in fields_in_use(config):
            assert getattr(config, field) == value
    # Selected on images that are held out, under the eps that is trained with, not on 500 test images.
    assert config.holdout == 500 and config.selection_attack == config.attack


def test_the_variants_of_tla_differ_from_it_in_the_method_alone():
    for name in list_presets():
        group, _, method = name.rpartition("/")
        if method in ("tla-rn", "tla-sa"):
            assert TrainConfig.preset(f"{group}/tla", method=method) == TrainConfig.preset(name)
            assert preset_sources(name)["method"] == "v1"


@pytest.mark.parametrize("name", list_presets())
def test_no_value_that_matters_is_silent(name):
    config = TrainConfig.preset(name)
    assert set(fields_in_use(config)) - set(preset_fields(name)) == {"seed", "version"}


def test_which_fields_matter():
    always = {
        "method", "dataset", "network", "width", "normalization", "batch_size", "augmentation", "optimizer",
        "learning_rate", "schedule", "weight_decay", "label_smoothing", "holdout", "averaging", "precision",
        "fine_tune", "seed", "version",
    }  # fmt: skip
    triplets = {
        "lambda_triplet", "lambda_norm", "margin", "pool_size", "positives", "norm_term", "mining", "negatives",
        "noise", "lambda_feature", "layer", "statistics",
    }  # fmt: skip
    attacked = {"attack", "eps_ramp"}
    expected = {
        (("method", "um"),): {"epochs"},
        (("method", "um"), ("holdout", 10)): {"epochs"},  # selected by clean accuracy
        (("method", "at"),): {"epochs"} | attacked,
        (("method", "at"), ("holdout", 10)): {"epochs", "selection_attack"} | attacked,
        (("method", "alp"),): {"epochs", "lambda_alp", "statistics"} | attacked,
        (("method", "tla"),): {"epochs"} | attacked | triplets,
        (("method", "tla-sa"),): {"epochs"} | attacked | triplets,
        (("method", "tla-rn"),): {"epochs"} | attacked | triplets - {"mining", "negatives"},
        (("method", "tla"), ("positives", "own+class")): {"epochs", "own_margin_factor"} | attacked | triplets,
        (("method", "um"), ("iterations", 9)): {"iterations"},
        (("method", "um"), ("schedule", "steps")): {"epochs", "milestones"},
        (("method", "um"), ("schedule", "onecycle")): {"epochs", "warmup"},
        (("method", "um"), ("network", "wrn-madry")): {"epochs", "blocks"},
    }
    for settings, others in expected.items():
        assert set(fields_in_use(TrainConfig(**dict(settings)))) == always | others


@pytest.mark.parametrize("name", [name for name in list_presets() if name.endswith("tla")])
def test_the_networks_of_the_presets_can_be_built(name):
    config = TrainConfig.preset(name)
    channels, size, classes = {"m": (1, 28, 10), "c": (3, 32, 10), "t": (3, 64, 200)}[config.dataset[0]]
    with torch.device("meta"):
        model = build_model(
            config.network, width=config.width, blocks=config.blocks, normalization=config.normalization,
            in_channels=channels, image_size=size, n_classes=classes,
        )  # fmt: skip
    assert set(model.layer_names) == {"lower", "middle", "higher"}


def test_small_and_mini_tell_what_they_share_with_the_supplement():
    mini = preset_sources("mini/mnist/tla")
    ours = {"dataset", "width", "epochs", "statistics", "learning_rate", "schedule", "warmup", "attack", "eps_ramp",
            "holdout", "selection_attack", "averaging", "precision"}  # fmt: skip
    assert {field for field, source in mini.items() if source == "ours"} == ours
    assert mini["weight_decay"] == mini["augmentation"] == "code"
    small = preset_sources("small/tiny-imagenet/tla")
    assert {field: small[field] for field in ("network", "optimizer", "learning_rate", "fine_tune")} == dict.fromkeys(
        ("network", "optimizer", "learning_rate", "fine_tune"), "ours"
    )


def test_the_runs_that_the_pipeline_has_made_keep_their_identities():
    """Changed settings would train them again: change `version`, or these, on purpose alone."""
    begins = {
        "mini/mnist/um": "6ea4d35f", "mini/mnist/at": "d2557d24", "mini/mnist/alp": "1f5409b0",
        "mini/mnist/tla": "b234f7bb", "small/mnist/um": "98505931", "small/mnist/at": "291e849a",
        "small/mnist/alp": "2ab915bc", "small/mnist/tla": "57a15d40", "small/cifar10/um": "5d63125e",
        "small/cifar10/at": "1878ccd7", "small/cifar10/alp": "652c3c00", "small/cifar10/tla": "0aea582b",
        "small/tiny-imagenet/um": "cc7abab4", "small/tiny-imagenet/at": "4cbc4080",
        "small/tiny-imagenet/alp": "af06e51f", "small/tiny-imagenet/tla": "8df60bbc",
    }  # fmt: skip
    assert {name: TrainConfig.preset(name).identity[:8] for name in begins} == begins


# Presets with changes -------------------------------------------------------------------------------------------------


def test_a_preset_with_fields_replaced():
    base = TrainConfig.preset("mini/mnist/tla")
    config = TrainConfig.preset("mini/mnist/tla", seed=3, margin=0.1, attack=AttackConfig(eps=0.1))
    assert config == dataclasses.replace(base, seed=3, margin=0.1, attack=AttackConfig(eps=0.1))
    with pytest.raises(ValueError, match="margin must be a finite number"):
        TrainConfig.preset("mini/mnist/tla", margin=-1)


@pytest.mark.parametrize(
    ("name", "changes", "length"),
    [
        ("supplement/cifar10/tla", {"epochs": 2}, (2, 0)),
        ("supplement/cifar10/tla", {"epochs": 1}, (1, 0)),
        ("supplement/cifar10/tla", {"iterations": 7}, (1, 7)),
        ("supplement/cifar10/tla", {"epochs": 3, "iterations": 0}, (3, 0)),
        ("supplement/tiny-imagenet/tla", {}, (1, 80_000)),
        ("mini/mnist/tla", {"iterations": 7}, (1, 7)),
        ("mini/mnist/tla", {"iterations": 0}, (5, 0)),
    ],
)
def test_of_epochs_and_iterations_the_one_that_is_given_counts(name, changes, length):
    config = TrainConfig.preset(name, **changes)
    assert (config.epochs, config.iterations) == length


def test_a_preset_is_not_changed_by_what_is_made_of_it():
    before = preset_fields("supplement/cifar10/tla")
    TrainConfig.preset("supplement/cifar10/tla", epochs=2, margin=0.5)
    preset_fields("supplement/cifar10/tla").clear()
    assert preset_fields("supplement/cifar10/tla") == before


def test_unknown_presets_and_fields_list_what_there_is():
    listing = r"unknown preset 'mini/mnist/trades'\. There are: .*mini/mnist/um, mini/mnist/at"
    for call in (TrainConfig.preset, preset_fields, preset_sources):
        with pytest.raises(ValueError, match=listing):
            call("mini/mnist/trades")
    with pytest.raises(ValueError, match=r"unknown field alpha, lamda\. A TrainConfig has: method, dataset, .*seed"):
        TrainConfig.preset("mini/mnist/tla", lamda=1, alpha=2)


# Sweeps ---------------------------------------------------------------------------------------------------------------

# Tables 4 to 6 of the supplement: lambda, margin and layer with the accuracy under PGD-100, %.
TABLES = {
    "table4": ("lambda_triplet", 0.5, {0: 94.82, 0.025: 96.31, 0.5: 96.96, 1: 96.57, 2: 96.72, 4: 96.26}),
    "table5": ("margin", 2, {0: 96.60, 0.025: 96.47, 0.05: 96.72, 0.1: 96.36, 0.2: 96.35}),
    "table6": ("layer", 2, {"lower": 96.14, "middle": 96.48, "higher": 96.72, "logits": 96.34}),
}


@pytest.mark.parametrize("table", TABLES)
def test_the_sweeps_are_tables_4_to_6(table):
    field, lambda_triplet, accuracies = TABLES[table]
    sweep = SWEEPS[table]
    assert (sweep.field, sweep.source) == (field, "supplement")
    assert dict(zip(sweep.values, SWEPT_ACCURACIES[table], strict=True)) == accuracies
    base = TrainConfig.preset("supplement/mnist/tla", seed=4)
    configs = sweep_configs(table, "supplement/mnist/tla", seed=4)
    expected = [dataclasses.replace(base, **{"lambda_triplet": lambda_triplet, field: value}) for value in accuracies]
    assert list(configs.values()) == expected
    assert list(configs) == [f"{field}={value}" for value in accuracies]


def test_the_pool_size_is_swept_too():
    sweep = SWEEPS["pool_size"]
    assert (sweep.field, sweep.source, sweep.base) == ("pool_size", "ours", {}) and "pool_size" not in SWEPT_ACCURACIES
    configs = sweep_configs("pool_size", "mini/mnist/tla", epochs=2)
    assert {config.pool_size for config in configs.values()} >= {10, 50, 500}
    assert all(config.epochs == 2 and config.margin == 0.05 for config in configs.values())


def test_sweeps_refuse_what_they_cannot_vary():
    with pytest.raises(ValueError, match=r"unknown sweep 'table7'\. There are: table4, table5, table6, pool_size"):
        sweep_configs("table7", "mini/mnist/tla")
    for method in ("at", "tla-rn"):
        with pytest.raises(ValueError, match=r"a sweep is over settings of TLA.*use \.\.\./tla"):
            sweep_configs("table4", f"mini/mnist/{method}")
    with pytest.raises(ValueError, match="unknown preset"):
        sweep_configs("table4", "mini/mnist/trades")


# Attacks of the analysis ----------------------------------------------------------------------------------------------

# Column: attack, steps, step size, restarts, momentum, loss, and whether it starts at random.
MNIST_COLUMNS = {
    "FGSM": ("fgsm", 1, 0.3, 1, 0, "ce", False),
    "BIM40": ("bim", 40, 0.01, 1, 0, "ce", False),
    "C&W40": ("cw", 40, 0.01, 1, 0, "margin", True),
    "PGD40": ("pgd", 40, 0.01, 1, 0, "ce", True),
    "PGD100": ("pgd", 100, 0.01, 1, 0, "ce", True),
    "20PGD100": ("pgd", 100, 0.01, 20, 0, "ce", True),
    "MIM200": ("mim", 200, 0.01, 1, 1, "ce", True),
    "BB100": ("pgd", 100, 0.01, 1, 0, "ce", True),
}
CIFAR10_COLUMNS = {
    "FGSM": ("fgsm", 1, 8 / 255, 1, 0, "ce", False),
    "BIM7": ("bim", 7, 2 / 255, 1, 0, "ce", False),
    "C&W30": ("cw", 30, 2 / 255, 1, 0, "margin", True),
    "PGD7": ("pgd", 7, 2 / 255, 1, 0, "ce", True),
    "PGD20": ("pgd", 20, 1 / 255, 1, 0, "ce", True),
    "20PGD20": ("pgd", 20, 1 / 255, 20, 0, "ce", True),
    "MIM40": ("mim", 40, 1 / 255, 1, 1, "ce", True),
    "BB7": ("pgd", 7, 2 / 255, 1, 0, "ce", True),
}
TINY_COLUMNS = CIFAR10_COLUMNS | {
    "PGD20": ("pgd", 20, 2 / 255, 1, 0, "ce", True),
    "20PGD20": ("pgd", 20, 2 / 255, 20, 0, "ce", True),
    "MIM40": ("mim", 40, 2 / 255, 1, 1, "ce", True),
}


@pytest.mark.parametrize(
    ("dataset", "eps", "expected"),
    [
        ("mnist", 0.3, MNIST_COLUMNS),
        ("mnist-mini", 0.3, MNIST_COLUMNS),
        ("cifar10", 8 / 255, CIFAR10_COLUMNS),
        ("cifar10-jpeg", 8 / 255, CIFAR10_COLUMNS),
        ("tiny-imagenet", 8 / 255, TINY_COLUMNS),
        ("my/images", 8 / 255, CIFAR10_COLUMNS),
    ],
)
def test_the_columns_of_the_accuracy_table(dataset, eps, expected):
    columns = accuracy_columns(TrainConfig(dataset=dataset))
    assert list(columns) == list(expected)
    for name, column in columns.items():
        attack = column.attack
        kind = (attack.name, attack.steps, attack.step_size, attack.restarts, attack.momentum, attack.loss)
        assert (*kind, attack.random_start) == expected[name]
        assert attack.eps == eps and attack.norm == "linf"
        assert column.black_box == name.startswith("BB")


def test_the_columns_of_a_user_s_images_follow_the_attack_that_was_trained_with():
    columns = accuracy_columns(TrainConfig(dataset="my/images", attack=AttackConfig(norm="l2", eps=2, step_size=1)))
    assert {column.attack.norm for column in columns.values()} == {"l2"}
    assert {column.attack.eps for column in columns.values()} == {2}
    assert (columns["PGD7"].attack.step_size, columns["20PGD20"].attack.step_size) == (0.5, 0.25)


def test_the_attacks_of_the_figures():
    """Evaluation PGD and the levels of Table 3, transcribed; mini has fewer steps of a greater size."""
    expected = {
        "mnist-mini": (0.3, 0.06, 10),
        "mnist": (0.3, 0.01, 100),
        "cifar10": (8 / 255, 1 / 255, 20),
        "cifar10-jpeg": (8 / 255, 1 / 255, 20),
        "tiny-imagenet": (8 / 255, 2 / 255, 20),
    }
    assert {name: (a.eps, a.step_size, a.steps) for name, a in ANALYSIS_ATTACKS.items()} == expected
    for name, levels in ANALYSIS_LEVELS.items():
        assert levels == ((0.03, 0.3) if name.startswith("mnist") else (8 / 255, 25 / 255))


def test_the_analysis_attack_is_that_of_the_dataset_or_follows_the_training():
    mini = TrainConfig.preset("mini/mnist/um")
    assert analysis_attack(mini) == ANALYSIS_ATTACKS["mnist-mini"] == analysis_attack(mini, 0.3)
    assert analysis_attack(mini, 0.03) == ANALYSIS_ATTACKS["mnist-mini"].scaled(0.03)
    own = analysis_attack(TrainConfig(dataset="my/folder", attack=AttackConfig(norm="l2", eps=2, step_size=1, steps=7)))
    assert (own.norm, own.eps, own.step_size, own.steps) == ("l2", 2, pytest.approx(0.2), 20)


def test_a_level_read_from_a_file_name_is_the_level_itself():
    """Paths and commands say `{eps:g}`, six digits: 0.0313725 must give the attack of 8/255."""
    config = TrainConfig(dataset="cifar10", attack=AttackConfig(eps=8 / 255))
    assert analysis_attack(config, float(f"{8 / 255:g}")) == analysis_attack(config)
    assert analysis_attack(config, float(f"{25 / 255:g}")).eps == 25 / 255
