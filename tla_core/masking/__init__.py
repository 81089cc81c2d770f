"""Is a robust accuracy an illusion? Cheap checks for attacks that fail for another reason than robustness.

A model that hides its gradients looks robust to a gradient attack and is not (Athalye et al. 2018, "Obfuscated
Gradients Give a False Sense of Security"; Carlini et al. 2019, "On Evaluating Adversarial Robustness"). `model_checks`
needs no attack, `attack_checks` judges the outcome of one, and `masking_checks` does both. Passing them proves nothing;
failing one means that the accuracy should not be believed before the message has been followed.
"""

from tla_core.masking.of_attacks import check_black_box, check_restarts, check_steps
from tla_core.masking.of_models import check_gradients, check_outputs, check_stochastic
from tla_core.masking.of_outcomes import check_ensemble, check_transfer
from tla_core.masking.suite import MaskingWarning, attack_checks, masking_checks, model_checks, warn_of_masking
from tla_core.masking.verdicts import MaskingCheck

__all__ = [
    "MaskingCheck",
    "MaskingWarning",
    "attack_checks",
    "check_black_box",
    "check_ensemble",
    "check_gradients",
    "check_outputs",
    "check_restarts",
    "check_steps",
    "check_stochastic",
    "check_transfer",
    "masking_checks",
    "model_checks",
    "warn_of_masking",
]
