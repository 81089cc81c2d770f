"""The record of a run, wherever it stands: whether it is whole, and how two of them differ."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tla_core.checkpoint import CheckpointError
from tla_core.config import TrainConfig, identity_of

# What a training goes on from, beside the tensors.
_OF_A_STATE = {"run", "step", "finished", "threads", "selected"}


def check_record(record: Any) -> None:
    """Whether a record is whole: its identity is the hash of the settings, the data and the start that it names.

    Raises
    ------
    ValueError, TypeError, KeyError
        With the reason.
    """
    if not isinstance(record, dict) or "identity" not in record:
        raise ValueError("is not that of a training")
    parts = {name: record.get(name) for name in ("config", "data", "start")}
    if wrong_parts := [name for name, part in parts.items() if not isinstance(part, dict)]:
        raise ValueError(f"was altered: {wrong_parts[0]} must be an object. Got {parts[wrong_parts[0]]!r:.40}")
    config = TrainConfig.from_dict(parts["config"])
    identity = identity_of({**parts, "config": config.identifying_fields()})
    if identity != record["identity"] or record.get("config_identity", config.identity) != config.identity:
        raise ValueError("was edited: its settings do not have the identity that it carries")


def record_of(path: Path, kind: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """The record of a run in the metadata of its weights (`kind` ``"model"``) or of its state (``"state"``).

    Raises
    ------
    CheckpointError
        If it is another kind of file, or the record is not whole.
    """
    if metadata.get("kind") != kind:
        content = {"model": "weights", "state": "state"}[kind]
        raise CheckpointError(f"{path} does not hold the {content} of a run. Got a file of {metadata.get('kind')!r}.")
    record, needed_keys = (metadata, {"selected"}) if kind == "model" else (metadata.get("run"), _OF_A_STATE)
    try:
        if missing_keys := needed_keys - set(metadata):
            raise ValueError(f"was altered: it lacks {', '.join(sorted(missing_keys))}")
        check_record(record)
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error) if str(error).startswith(("was ", "is ")) else f"was altered: {error}"
        raise CheckpointError(f"{path} {reason}.") from error
    return record


def check_numbers(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Refuse weights that are NaN or infinite: whatever is computed with them means nothing.

    Raises
    ------
    CheckpointError
        With the name of the tensor, and the number of such values.
    """
    if name := not_a_number(tensors, record):
        n_wrong = int((~tensors[name].isfinite()).sum())
        raise CheckpointError(
            f"{path} cannot be used: of {name}, {n_wrong:,} of {tensors[name].numel():,} values are NaN or infinite."
        )


def not_a_number(tensors: dict[str, Tensor], record: dict[str, Any]) -> str | None:
    """Name of the first tensor with a NaN or, in a network that is not the user's, an infinite value; None without one.

    A buffer of the user's may be infinite on purpose, such as a mask.
    """
    is_wrong = torch.isnan if record["start"]["network"] != "preset" else lambda tensor: ~torch.isfinite(tensor)
    floating = (name for name, tensor in sorted(tensors.items()) if tensor.is_floating_point())
    return next((name for name in floating if is_wrong(tensors[name]).any()), None)


def describe_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the fields in which two run records differ, with both values."""
    # A record from before a field was added was made with the value that is now its default.
    defaults = _flat({"config": TrainConfig().to_dict()})
    flat_old, flat_new = defaults | _flat(old), defaults | _flat(new)
    keys = [key for key in sorted(flat_old | flat_new) if key.startswith(("config.", "data.", "start."))]
    different = [key for key in keys if flat_old.get(key) != flat_new.get(key)]
    return "; ".join(f"{key} was {flat_old.get(key)!r}, is {flat_new.get(key)!r}" for key in different) or "unknown"


def describe_network_differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Name the sizes that shape the weights and differ between two run records: "10 classes, here 200; "."""
    defaults = _flat({"config": TrainConfig().to_dict()})
    old, new = defaults | _flat(old), defaults | _flat(new)
    parts = {
        "data.classes": "{} classes, here {}", "data.channels": "{} channels, here {}",
        "data.image_size": "images of {} pixels, here {}", "start.network": "the network {}, here {}",
        "config.network": "the network {}, here {}", "config.width": "width {:g}, here {:g}",
        "config.blocks": "blocks {}, here {}",
    }  # fmt: skip
    return "".join(f"{text.format(old[key], new[key])}; " for key, text in parts.items() if old[key] != new[key])


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        path: leaf for key, inner in value.items() for path, leaf in _flat(inner, f"{prefix}.{key}".lstrip(".")).items()
    }
