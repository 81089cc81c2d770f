import dataclasses
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from tla_core.attack_config import AttackConfig, format_number, parse_number
from tla_core.config import TrainConfig, canonical_json, identity_of
from tla_core.presets import list_presets

# Attacks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "autoattack"}, r"must be one of fgsm, bim, pgd, mim, cw, apgd, square\. Got 'autoattack'"),
        ({"norm": "l1"}, r"norm must be one of linf, l2\. Got 'l1'"),
        ({"loss": "hinge"}, r"loss must be one of ce, margin, dlr\. Got 'hinge'"),
        ({"eps": -0.1}, r"eps must be a finite number, at least 0\. Got -0\.1"),
        ({"eps": math.nan}, "eps must be a finite number, at least 0. Got nan"),
        ({"eps": math.inf, "norm": "l2"}, "eps must be a finite number, at least 0. Got inf"),
        ({"eps": "0.3"}, "eps must be a finite number, at least 0. Got '0.3'"),
        ({"eps": None}, "eps must be a finite number, at least 0. Got None"),
        ({"eps": True}, "eps must be a finite number, at least 0. Got True"),
        ({"eps": 8}, r"eps must be at most 1 for linf, since images are in \[0, 1\]\. Got 8; did you mean 8/255\?"),
        ({"eps": 25.0}, r"did you mean 25/255\?"),
        ({"eps": 1000}, r"Got 1000; did you mean 8/255\?"),
        ({"step_size": 2}, r"step_size must be at most 1 for linf.* did you mean 2/255\?"),
        ({"step_size": -2 / 255}, "step_size must be a finite number, at least 0"),
        ({"step_size": math.nan}, "step_size must be a finite number, at least 0"),
        ({"eps": 1, "step_size": True}, "step_size must be a finite number, at least 0. Got True"),
        ({"steps": 0}, r"steps must be a whole number of at least 1\. Got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1. Got 2.5"),
        ({"steps": 20.0}, "steps must be a whole number of at least 1. Got 20.0"),
        ({"steps": True}, "steps must be a whole number of at least 1. Got True"),
        ({"steps": "20"}, "steps must be a whole number of at least 1. Got '20'"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1. Got 0"),
        ({"restarts": 3, "random_start": False}, r"restarts must be 1 without a random start.* Got 3"),
        ({"restarts": 3, "name": "bim"}, "restarts must be 1 without a random start"),
        ({"restarts": 2, "name": "fgsm"}, "restarts must be 1 without a random start"),
        ({"random_start": "no"}, "random_start must be True or False. Got 'no'"),
        ({"random_start": 1}, "random_start must be True or False. Got 1"),
        ({"momentum": -0.1}, "momentum must be a finite number, at least 0. Got -0.1"),
        ({"momentum": math.nan}, "momentum must be a finite number, at least 0. Got nan"),
        ({"targets": -1}, r"targets must be a whole number of at least 0\. Got -1"),
        ({"name": "apgd", "momentum": 0.75}, "momentum must be 0 for apgd, which has one of its own. Got 0.75"),
    ],
)
def test_attack_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        AttackConfig(**settings)


def test_radii_above_one_are_fine_in_l2():
    assert AttackConfig(norm="l2", eps=3, step_size=2).eps == 3


@pytest.mark.parametrize(
    ("name", "given", "implied"),
    [
        ("pgd", {}, {"random_start": True, "loss": "ce", "momentum": 0.0, "steps": 20, "step_size": 2 / 255}),
        ("fgsm", {"eps": 0.3, "steps": 40}, {"steps": 1, "step_size": 0.3, "random_start": False}),
        ("fgsm", {"norm": "l2", "eps": 5}, {"steps": 1, "step_size": 5, "random_start": False}),
        ("bim", {"steps": 7}, {"steps": 7, "random_start": False, "momentum": 0.0}),
        ("mim", {}, {"momentum": 1.0, "random_start": True}),
        ("mim", {"momentum": 0.9}, {"momentum": 0.9}),
        ("cw", {"restarts": 2}, {"loss": "margin", "restarts": 2}),
    ],
)
def test_an_attacks_name_sets_what_it_stands_for(name, given, implied):
    attack = AttackConfig(name=name, **given)
    assert {key: getattr(attack, key) for key in implied} == implied


def test_scaled_keeps_the_steps_and_the_proportion_of_their_size():
    attack = AttackConfig(name="mim", eps=0.3, step_size=0.03, steps=20, momentum=0.9)
    scaled = attack.scaled(0.03)
    assert scaled == dataclasses.replace(attack, eps=0.03, step_size=scaled.step_size)
    assert scaled.step_size == pytest.approx(0.003)
    assert AttackConfig(name="fgsm", eps=0.3).scaled(0.1).step_size == pytest.approx(0.1)
    assert attack.scaled(0).step_size == 0
    with pytest.raises(ValueError, match="eps 0 cannot be scaled"):
        attack.scaled(0).scaled(0.1)
    with pytest.raises(ValueError, match="did you mean 8/255"):
        attack.scaled(8)


def test_an_attack_reads_as_one_line():
    assert str(AttackConfig(name="fgsm", eps=0.3)) == "FGSM, eps 0.3 (linf)"
    assert str(AttackConfig(eps=0.3, step_size=0.01, steps=40)) == "PGD 40 x 0.01, eps 0.3 (linf)"
    assert str(AttackConfig(eps=0.3, restarts=3)).endswith("eps 0.3 (linf), 3 restarts")
    assert str(AttackConfig()) == "PGD 20 x 2/255, eps 8/255 (linf)"
    assert str(AttackConfig(name="fgsm", eps=25 / 255)) == "FGSM, eps 25/255 (linf)"


# Trainings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "trades"}, r"method must be one of um, at, alp, tla, tla-rn, tla-sa\. Got 'trades'"),
        ({"normalization": "imagenet"}, r"normalization must be one of none, per-image\. Got 'imagenet'"),
        ({"augmentation": "flip"}, "augmentation must be one of none, crop-flip, crop-flip-saturation. Got 'flip'"),
        ({"positives": "all"}, r"positives must be one of class, own, own\+class\. Got 'all'"),
        ({"negatives": "easiest"}, r"negatives must be one of hardest, semi-hard\. Got 'easiest'"),
        ({"statistics": "clean"}, r"statistics must be one of all, adversarial\. Got 'clean'"),
        ({"norm_term": "l1"}, r"norm_term must be one of l2, mean-square\. Got 'l1'"),
        ({"mining": "euclidean"}, r"mining must be one of angular, cosine\. Got 'euclidean'"),
        ({"noise": "none"}, r"noise must be one of triplet, own\. Got 'none'"),
        ({"precision": "fp16"}, r"precision must be one of fp32, bf16\. Got 'fp16'"),
        ({"lambda_feature": -0.5}, "lambda_feature must be a finite number, at least 0. Got -0.5"),
        ({"own_margin_factor": math.nan}, "own_margin_factor must be a finite number, at least 0. Got nan"),
        ({"averaging": 1.0}, r"averaging must be a finite number, at least 0 and less than 1\. Got 1\.0"),
        ({"iterations": -1}, "iterations must be a whole number of at least 0. Got -1"),
        ({"iterations": 5.5}, "iterations must be a whole number of at least 0. Got 5.5"),
        ({"blocks": (5, 0, 5)}, "blocks must be a whole number of at least 1. Got 0"),
        ({"blocks": 5}, "blocks must be a sequence of numbers. Got 5"),
        ({"blocks": "5-5-5"}, "blocks must be a sequence of numbers. Got '5-5-5'"),
        ({"milestones": 0.5}, r"milestones must be a sequence of numbers\. Got 0\.5"),
        ({"fine_tune": 1}, "fine_tune must be True or False. Got 1"),
        ({"optimizer": "lion"}, r"optimizer must be one of adam, sgd\. Got 'lion'"),
        ({"schedule": "cosine"}, r"schedule must be one of constant, onecycle, steps\. Got 'cosine'"),
        ({"width": 0}, r"width must be a finite number, more than 0\. Got 0"),
        ({"width": math.inf}, "width must be a finite number, more than 0. Got inf"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number, more than 0. Got 0.0"),
        ({"learning_rate": "1e-4"}, "learning_rate must be a finite number, more than 0. Got '1e-4'"),
        ({"learning_rate": math.nan}, "learning_rate must be a finite number, more than 0. Got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be a finite number, at least 0. Got -0.0001"),
        ({"lambda_triplet": -1}, "lambda_triplet must be a finite number, at least 0"),
        ({"lambda_norm": math.nan}, "lambda_norm must be a finite number, at least 0"),
        ({"lambda_alp": math.inf}, "lambda_alp must be a finite number, at least 0"),
        ({"margin": True}, "margin must be a finite number, at least 0. Got True"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be a finite number, at least 0 and less than 1\. Got 1\.0"),
        ({"eps_ramp": 1.1}, r"eps_ramp must be a finite number, at least 0 and at most 1\. Got 1\.1"),
        ({"warmup": 0}, r"warmup must be a finite number, more than 0 and less than 1\. Got 0"),
        ({"warmup": 1.0}, "warmup must be a finite number, more than 0 and less than 1. Got 1.0"),
        ({"milestones": (0.5, 1.0)}, "milestones must be a finite number, more than 0 and less than 1. Got 1.0"),
        ({"milestones": (50,)}, "milestones must be a finite number, more than 0 and less than 1. Got 50"),
        ({"epochs": 0}, r"epochs must be a whole number of at least 1\. Got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1. Got 1.5"),
        ({"batch_size": 1}, r"batch_size must be a whole number of at least 2\. Got 1"),
        ({"pool_size": 1}, "pool_size must be a whole number of at least 2. Got 1"),
        ({"holdout": -1}, "holdout must be a whole number of at least 0. Got -1"),
        ({"seed": -1}, "seed must be a whole number of at least 0. Got -1"),
        ({"seed": True}, "seed must be a whole number of at least 0. Got True"),
        ({"attack": "pgd"}, r"attack must be an AttackConfig\. Got 'pgd'"),
        ({"selection_attack": {"eps": 0.3}}, r"selection_attack must be an AttackConfig\. Got \{'eps': 0\.3\}"),
        ({"version": 2}, r"version must be 1, which this code trains\. Got 2"),
    ],
)
def test_training_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2, "iterations": 9}, r"set iterations to 0 to count epochs.*Got epochs=2 and iterations=9"),
        ({"lambda_feature": 0.5}, r"lambda_feature must be 0 with positives 'class'.*Got 0\.5; take positives 'own'"),
        (
            {"own_margin_factor": 30},
            r"own_margin_factor must be 1 unless positives is 'own\+class'.*Got 30 with .*'class'; change margin",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)
    if "epochs" not in settings:
        TrainConfig(**settings, positives="own+class")


def test_settings_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        AttackConfig("pgd")
    with pytest.raises(TypeError, match="positional"):
        TrainConfig("tla")


def test_settings_are_frozen():
    config = TrainConfig()
    with pytest.raises(dataclasses.FrozenInstanceError, match="margin"):
        config.margin = 0.1
    with pytest.raises(dataclasses.FrozenInstanceError, match="eps"):
        config.attack.eps = 0.1
    assert isinstance(TrainConfig(milestones=[0.5, 0.75]).milestones, tuple)


def test_repr_can_be_pasted_back():
    config = TrainConfig(method="at", milestones=(0.5,), attack=AttackConfig(name="mim", eps=0.3))
    assert eval(repr(config), {"TrainConfig": TrainConfig, "AttackConfig": AttackConfig}) == config
    assert "method='at'" in repr(config) and "eps=0.3" in repr(config)


# Identity -------------------------------------------------------------------------------------------------------------

# A value other than the default for every field, so that a field added later must be thought of here.
OTHER_TRAINING = {
    "method": "at", "dataset": "mnist", "network": "wrn-madry", "width": 0.5, "blocks": (1, 2, 1),
    "normalization": "per-image", "epochs": 2, "iterations": 3, "batch_size": 51, "augmentation": "crop-flip",
    "optimizer": "sgd", "learning_rate": 2e-4, "schedule": "steps", "warmup": 0.2, "milestones": (0.5,),
    "weight_decay": 0.0, "label_smoothing": 0.1, "lambda_triplet": 0.6, "lambda_norm": 0.0, "lambda_alp": 0.4,
    "margin": 0.06, "pool_size": 51, "positives": "own+class", "own_margin_factor": 2.0, "norm_term": "mean-square",
    "mining": "cosine", "negatives": "semi-hard", "noise": "own", "lambda_feature": 0.1,
    "statistics": "adversarial", "layer": "logits", "attack": AttackConfig(steps=21), "eps_ramp": 0.5, "holdout": 1,
    "selection_attack": AttackConfig(steps=21), "averaging": 0.9, "precision": "bf16", "fine_tune": True,
    "step": "a:b", "seed": 1, "version": 1,
}  # fmt: skip
OTHER_ATTACK = {
    "name": "cw", "norm": "l2", "eps": 0.1, "step_size": 0.01, "steps": 21, "restarts": 2, "random_start": False,
    "loss": "margin", "momentum": 0.5, "targets": 9,
}  # fmt: skip


def test_every_field_changes_the_identity():
    assert set(OTHER_TRAINING) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(OTHER_ATTACK) == {f.name for f in dataclasses.fields(AttackConfig)}
    base = TrainConfig(positives="own+class")  # which some fields need
    others = {key: value for key, value in OTHER_TRAINING.items() if key not in ("version", "positives")}
    changed = [dataclasses.replace(base, **{key: value}) for key, value in others.items()]
    changed += [TrainConfig(attack=AttackConfig(**{key: value})) for key, value in OTHER_ATTACK.items()]
    changed += [TrainConfig(selection_attack=AttackConfig(**{key: value})) for key, value in OTHER_ATTACK.items()]
    identities = {config.identity for config in [TrainConfig(), base, *changed]}
    assert len(identities) == len(changed) + 2
    assert identity_of({**TrainConfig().identifying_fields(), "version": 2}) not in identities


def test_a_field_that_was_added_later_leaves_the_identity_of_old_runs():
    """What is at its default is no part of it; the runs of the first release have these."""
    assert TrainConfig().identifying_fields() == {"version": 1}
    config = TrainConfig(method="at", attack=AttackConfig(eps=0.3))
    assert config.identifying_fields() == {"version": 1, "method": "at", "attack": {"eps": 0.3}}
    assert config.identity == identity_of({"version": 1, "method": "at", "attack": {"eps": 0.3}})


@pytest.mark.parametrize(
    "same",
    [
        {"lambda_triplet": 2},
        {"lambda_triplet": np.float64(2)},
        {"lambda_triplet": np.float32(2)},
        {"lambda_triplet": np.int64(2)},
        {"lambda_triplet": 2.0, "epochs": np.int32(1), "milestones": []},
        {"attack": AttackConfig(eps=np.float64(8 / 255), steps=np.int64(20)), "lambda_triplet": 2.0},
    ],
)
def test_equal_settings_have_one_identity_whatever_their_number_types(same):
    config = TrainConfig(**same)
    assert config.identity == TrainConfig(lambda_triplet=2.0).identity
    assert len(config.identity) == 64
    json.dumps(config.to_dict())


def test_identity_does_not_depend_on_the_order_of_fields():
    config = TrainConfig(method="at", margin=0.1, attack=AttackConfig(eps=0.3, steps=3))
    fields = config.identifying_fields()
    assert identity_of(dict(reversed(fields.items()))) == config.identity


def test_identity_is_the_same_in_another_process():
    """Hash randomisation must not reach it, or each process would train again."""
    code = "from tla_core.config import TrainConfig; print(TrainConfig.preset('mini/mnist/tla').identity)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == TrainConfig.preset("mini/mnist/tla").identity


def test_dict_round_trip():
    for config in [TrainConfig(**OTHER_TRAINING | {"epochs": 1}), *map(TrainConfig.preset, list_presets())]:
        stored = json.loads(json.dumps(config.to_dict()))
        assert TrainConfig.from_dict(stored) == config
        assert TrainConfig.from_dict(stored).identity == config.identity
        assert isinstance(stored["attack"], dict) and TrainConfig.from_dict(config.to_dict() | {"seed": 5}).seed == 5


def test_from_dict_refuses_fields_of_a_newer_version():
    with pytest.raises(ValueError, match=r"unknown field dropout: was it written by a newer version"):
        TrainConfig.from_dict(TrainConfig().to_dict() | {"dropout": 0.5})


def test_from_dict_refuses_fields_of_a_newer_version_in_an_attack():
    values = TrainConfig().to_dict()
    values["attack"]["targeted"] = True
    with pytest.raises(ValueError, match=r"unknown field targeted: was it written by a newer version"):
        TrainConfig.from_dict(values)


def test_canonical_json_has_one_spelling():
    value = {"b": 1.0, "a": (np.float64(0.5), np.int64(3), True, None)}
    assert canonical_json(value) == '{"a":[0.5,3,true,null],"b":1}'
    assert canonical_json(-0.0) == canonical_json(0)
    assert canonical_json({"ratio": 1e-7}) == '{"ratio":1e-07}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"loss": math.nan})


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("0.3", 0.3),
        ("1e-4", 1e-4),
        (" 2 / 255 ", 2 / 255),
        ("-1", -1.0),
        ("3", 3.0),
        ("1/3", 1 / 3),
    ],
)
def test_numbers_may_be_fractions(text, value):
    assert parse_number(text) == value
    assert "/" not in text or parse_number(text) == float(Fraction(text.replace(" ", "")))


@pytest.mark.parametrize("text", ["", "eight", "8/", "/255", "8/255/2", "1/0", "8\\255", "0,3"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"expected a number such as 0\.3 or 8/255\. Got"):
        parse_number(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"), (25 / 255, "25/255"), (1 / 255, "1/255"), (85 / 255, "1/3"), (1 / 3, "1/3"),
        (0.3, "0.3"), (0.03, "0.03"), (1e-4, "0.0001"), (1.0, "1"), (0.0, "0"), (50 / 55, "10/11"), (1 / 8, "0.125"),
        (0.1 + 0.2, "0.3"), (math.pi, "3.14159"), (math.inf, "inf"), (5, "5"), (-8 / 255, "-8/255"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_fractions_where_no_decimal_is_exact(value, text):
    assert format_number(value) == text
    if math.isfinite(value):
        assert parse_number(text) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("numerator", range(1, 256))
def test_what_is_written_of_a_pixel_value_is_read_as_the_same(numerator):
    assert parse_number(format_number(numerator / 255)) == numerator / 255
