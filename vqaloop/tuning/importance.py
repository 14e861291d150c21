"""How much each tuned parameter of an encoder mattered in a study."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

LEAST_TRIALS = 8
"""Trials with a value below which nothing is said of importance."""


def tuning_json(told: Sequence[dict[str, Any]], trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What a ladder keeps of the study of its parameters; `told` are its trials as JSON."""
    return {"trials": list(told), "importance": importance(trials)}


def importance(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Share of each parameter in what made good trials good, largest first, 1 together.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), as Optuna has it: how differently the
    better trials are spread over a parameter. Empty where the trials are too few, or all alike.
    """
    valued = [t for t in trials if t.state == TrialState.COMPLETE and t.values]
    if len(valued) < LEAST_TRIALS or len({t.values[0] for t in valued}) < 2:
        return {}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize")
        study.add_trials(valued)
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    except (ValueError, RuntimeError):
        # of parameters that never varied nothing can be said
        return {}
    finally:
        optuna.logging.set_verbosity(before)
    return {name: round(float(share), 4) for name, share in found.items()}
