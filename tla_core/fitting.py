"""Whether the outputs of a model are the classes of the images that it is shown."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from tla_core.wrapping import output_names, see_through


def check_classes(
    name: str, model: nn.Module, logits: Tensor, class_names: Sequence[str], *, has_names: bool,
    choose: Callable[[Sequence[str]], str],
) -> None:  # fmt: skip
    """See that logits are finite, and of the classes in their order.

    Parameters
    ----------
    name : str
        How messages call the model.
    model : nn.Module
    logits : Tensor, (n, outputs)
    class_names : sequence of str
    has_names : bool
        Whether these name every class. Otherwise they are numbers, and may lack classes.
    choose : callable
        Names of outputs -> how the user says that these are the classes.

    Raises
    ------
    ValueError
        For NaN or infinity, a single output, more or fewer outputs than names, or outputs that the model calls by the
        same names in another order; with what to do.
    """
    n_outputs, n_classes = logits.shape[1], len(class_names)
    if n_broken := int((~logits.isfinite()).any(1).sum()):
        raise ValueError(
            f"{name} returns NaN or infinite logits for {n_broken} of {len(logits)} images; expected numbers. Was it"
            " trained to an end?"
        )
    if n_outputs < 2:
        raise ValueError(f"{name} has one output; expected two classes or more to tell apart.")
    if has_names and n_outputs != n_classes:
        raise ValueError(
            f"{name} has {n_outputs} outputs, and the images have {n_classes} classes: say which outputs they are,"
            f" {choose(['...'])} with {n_classes} numbers, or names that the model knows."
        )
    if order := _names_in_order(model, class_names):
        raise ValueError(f"{name} has the classes of the images in another order: say {choose(order)}.")


def _names_in_order(model: nn.Module, class_names: Sequence[str]) -> list[str] | None:
    """The model's names of its outputs in the order of the classes; None where these agree, or cannot be told."""
    names = {name.casefold(): name for name in output_names(see_through(model))}
    expected_order = [name.casefold() for name in class_names]
    if sorted(names) != sorted(expected_order) or list(names) == expected_order:
        return None
    return [names[name] for name in expected_order]
