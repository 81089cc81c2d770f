"""Is a robust accuracy an illusion? Cheap checks for attacks that fail for another reason than robustness.

A model that hides its gradients looks robust to a gradient attack and is not (Athalye et al. 2018, "Obfuscated
Gradients Give a False Sense of Security"; Carlini et al. 2019, "On Evaluating Adversarial Robustness"). `model_checks`
needs no attack, `attack_checks` judges the outcome of one, `search_check` that of all in a ball, `masking_checks` does
all three, and `compare_attacks` compares the outcomes of several. Passing them proves nothing;
failing one means that the accuracy should not be believed before the message has been followed.
"""

from tla_core.masking.of_attacks import (
    check_perturbed_outputs,
    check_steps,
    check_unbounded,
)
from tla_core.masking.of_gradients import check_gradients
from tla_core.masking.of_models import check_batch, check_outputs, check_stochastic
from tla_core.masking.of_outcomes import COMPARISONS, check_ensemble, check_stronger, check_transfer, compare_attacks
from tla_core.masking.of_searches import check_black_box
from tla_core.masking.suite import (
    MaskingWarning,
    attack_checks,
    masking_checks,
    model_checks,
    search_check,
    warn_of_masking,
)
from tla_core.masking.verdicts import MaskingCheck, failure_lines, gap_lines

__all__ = [
    "COMPARISONS",
    "MaskingCheck",
    "MaskingWarning",
    "attack_checks",
    "check_batch",
    "check_black_box",
    "check_ensemble",
    "check_gradients",
    "check_outputs",
    "check_perturbed_outputs",
    "check_steps",
    "check_stochastic",
    "check_stronger",
    "check_transfer",
    "check_unbounded",
    "compare_attacks",
    "failure_lines",
    "gap_lines",
    "masking_checks",
    "model_checks",
    "search_check",
    "warn_of_masking",
]
