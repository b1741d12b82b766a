"""Open-set metrics from scores with known truth. Higher scores mean more unknown.

Legend: N known classes; the label -1 (or any other name outside them) means unknown.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, f1_score, roc_auc_score, roc_curve

Scores = NDArray[np.floating]
Flags = NDArray[np.bool_]


def auroc(scores: Scores, unknown: Flags) -> float:
    """Return the area under the ROC curve of unknown against known images; chance is 0.5."""
    return float(roc_auc_score(unknown, scores))


def fpr_at_95_tpr(scores: Scores, unknown: Flags) -> float:
    """Return the share of unknown images taken for known when at least 95 % of the known images are accepted.

    Lower is better.
    """
    false_positives, true_positives, _ = roc_curve(~unknown, -scores, drop_intermediate=False)
    return float(false_positives[np.argmax(true_positives >= 0.95)])


def oscr(scores: Scores, unknown: Flags, correct: Flags) -> float:
    """Return the area under the rate of correctly classified known images over that of falsely accepted unknown images.

    Source: Dhamija et al., 2018.
    """
    order = np.argsort(scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) > 0, True)
    rate_correct = np.cumsum((correct & ~unknown)[order])[last_of_ties] / max(1, (~unknown).sum())
    rate_false = np.cumsum(unknown[order])[last_of_ties] / max(1, unknown.sum())
    return float(auc(np.append(0.0, rate_false), np.append(0.0, rate_correct)))


def risk_coverage(scores: Scores, wrong: Flags) -> tuple[Scores, Scores]:
    """Return coverage and risk at each distinct score, as it is the largest that is accepted.

    Coverage is the share of all images that are accepted, risk the share of these that are wrong: unknown, or of a
    known class and classified as another. Source: El-Yaniv & Wiener, 2010.
    """
    order = np.argsort(scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) > 0, True)
    accepted = np.arange(1, len(scores) + 1)
    risk = np.cumsum(wrong[order]) / accepted
    return accepted[last_of_ties] / len(scores), risk[last_of_ties]


def macro_f1(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Return F1 averaged over the N known classes and `unknown`."""
    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))
