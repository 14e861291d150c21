"""Agreement between scores and labels: SRCC, KRCC, PLCC, RMSE."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

Values = npt.NDArray[np.float64]


def agreement(scores: Values, labels: Values) -> dict[str, float]:
    """SRCC, KRCC, PLCC and RMSE of two (N,) arrays; PLCC raw, without a fitted mapping.

    A constant side has no correlation: its entries are nan.
    """
    if len(scores) < 3 or np.ptp(scores) == 0 or np.ptp(labels) == 0:
        missing = float("nan")
        correlations = {"srcc": missing, "krcc": missing, "plcc": missing}
    else:
        correlations = {
            "srcc": float(stats.spearmanr(scores, labels).statistic),
            "krcc": float(stats.kendalltau(scores, labels).statistic),
            "plcc": float(stats.pearsonr(scores, labels).statistic),
        }
    return {**correlations, "rmse": float(np.sqrt(np.mean((scores - labels) ** 2)))}


def within(scores: Values, labels: Values, groups: Sequence[str]) -> float:
    """Mean over groups (titles) of the SRCC inside each; groups under 4 members are left out."""
    names = np.asarray(groups)
    found = []
    for name in np.unique(names):
        mask = names == name
        if mask.sum() >= 4 and np.ptp(labels[mask]) > 0 and np.ptp(scores[mask]) > 0:
            found.append(stats.spearmanr(scores[mask], labels[mask]).statistic)
    return float(np.mean(found)) if found else float("nan")
