"""Names of runs that differ from a method's own."""

import pytest

from analysis.scales.variants import split_variant, variant_fields, variant_name
from tla_core.protocol import SWEEPS


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("tla", ("tla", "")),
        ("at@copy", ("at", "copy")),
        ("tla@lambda_triplet=2,layer=lower", ("tla", "lambda_triplet=2,layer=lower")),
        ("tla-rn@margin=0.1", ("tla-rn", "margin=0.1")),
    ],
)
def test_a_method_is_split_at_its_variant(method, parts):
    assert split_variant(method) == parts


@pytest.mark.parametrize(
    ("variant", "fields"),
    [
        ("", {}),
        ("copy", {}),
        ("short", {}),
        ("lambda_triplet=2", {"lambda_triplet": 2.0}),
        ("lambda_triplet=2,layer=lower", {"lambda_triplet": 2.0, "layer": "lower"}),
        ("epochs=3,layer=features.4", {"epochs": 3, "layer": "features.4"}),
        ("lambda_norm=1e-07", {"lambda_norm": 1e-7}),
        ("pool_size=1e2", {"pool_size": 100}),
    ],
)
def test_a_name_gives_settings_of_the_fields_types(variant, fields):
    found = variant_fields(variant)
    assert found == fields and [type(v) for v in found.values()] == [type(v) for v in fields.values()]


@pytest.mark.parametrize(
    "variant",
    [
        "long", "copy,margin=0.1", "margin", "margin=", "=2", "marge=0.1", "margin=0.1,", "seed=3", "method=at",
        # Neither a number nor a word; and what would be a folder in a folder.
        "attack=pgd", "milestones=0.5", "fine_tune=1", "margin=1/10", "dataset=/my/images",
    ],
)  # fmt: skip
def test_other_names_are_refused(variant):
    expected = "Expected copy or short, or settings such as lambda_triplet=2,layer=lower"
    with pytest.raises(ValueError, match=rf"unknown variant '{variant}'\. {expected}"):
        variant_fields(variant)


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("margin=wide", r"expected a number such as 0\.3 or 8/255\. Got 'wide'"),
        ("epochs=2.5", r"epochs of a variant must be a whole number\. Got '2\.5'"),
        ("pool_size=inf", r"pool_size of a variant must be a whole number\. Got 'inf'"),
    ],
)
def test_other_values_are_refused(variant, message):
    with pytest.raises(ValueError, match=message):
        variant_fields(variant)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, ""),
        ({"lambda_triplet": 2.0}, "lambda_triplet=2"),
        ({"margin": 0.025, "lambda_triplet": 2.0}, "lambda_triplet=2,margin=0.025"),
        ({"layer": "lower", "epochs": 3}, "epochs=3,layer=lower"),
    ],
)
def test_a_name_is_short_and_in_the_order_of_the_fields(changes, name):
    assert variant_name(changes) == variant_name(dict(reversed(changes.items()))) == name


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": 8 / 255, "lambda_norm": 1e-7},
        {"margin": 0.1 + 0.2},
        {"iterations": 1_234_567, "lambda_triplet": 1 / 3},
        *({**sweep.base, sweep.field: value} for sweep in SWEEPS.values() for value in sweep.values),
    ],
)
def test_a_name_gives_back_the_settings_that_it_was_made_of(changes):
    assert variant_fields(variant_name(changes)) == changes
