"""Names of runs that differ from a method's own: ``tla@lambda_triplet=2``, ``at@copy``."""

from dataclasses import fields
from typing import Any

from tla_core.attack_config import parse_number
from tla_core.config import TrainConfig

# Variants that change no setting of their own: an independently trained copy, and a shorter training.
PLAIN = ("copy", "short")
_TYPES = {field.name: type(field.default) for field in fields(TrainConfig) if field.name not in ("method", "seed")}


def split_variant(method: str) -> tuple[str, str]:
    """``"tla@margin=0.1"`` -> ``("tla", "margin=0.1")``; without a variant the second part is empty."""
    name, _, variant = method.partition("@")
    return name, variant


def variant_fields(variant: str) -> dict[str, Any]:
    """The settings that a variant's name gives: ``"lambda_triplet=2,layer=lower"`` -> their fields and values.

    Raises
    ------
    ValueError
        For a word that is neither a known one nor a field of `TrainConfig` with a number or a word as its value. No
        value holds a slash: a variant is the name of a folder.
    """
    fields_given: dict[str, Any] = {}
    for part in variant.split(",") if variant not in ("", *PLAIN) else ():
        name, is_field, value = part.partition("=")
        kind = _TYPES.get(name)
        if not is_field or kind not in (float, int, str) or not value or "/" in value:
            raise ValueError(
                f"unknown variant {variant!r}. Expected {' or '.join(PLAIN)}, or settings such as"
                " lambda_triplet=2,layer=lower."
            )
        number = value if kind is str else parse_number(value)
        if kind is int and not number.is_integer():
            raise ValueError(f"{name} of a variant must be a whole number. Got {value!r}.")
        fields_given[name] = kind(number)
    return fields_given


def variant_name(changes: dict[str, Any]) -> str:
    """The variant of changed settings, in the order of their names."""
    return ",".join(f"{name}={_text(value)}" for name, value in sorted(changes.items()))


def _text(value: Any) -> str:
    """As short as it can be said: ``2`` for 2.0; no digit that counts is lost."""
    if isinstance(value, str):
        return value
    short = format(value, "g")
    return short if float(short) == value else repr(value)
