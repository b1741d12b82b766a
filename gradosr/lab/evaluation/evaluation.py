"""Open-set metrics of a run's labelled rows: of every score, by class, and the detector that they speak for."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gradosr.audit.proportions import wilson
from gradosr.config import Signals
from gradosr.lab.evaluation.advice import Advice, advise, passes_of
from gradosr.lab.evaluation.metrics import Flags, Scores, auroc, fpr_at_95_tpr, macro_f1, oscr
from gradosr.lab.evaluation.rows import OWN, LabelledRows


@dataclass(frozen=True)
class ScoreMetrics:
    """Metrics of one score, unknown against known; None if every row is of a known class."""

    auroc: float | None
    fpr95: float | None
    """Share of unknown images accepted when 95 % of the known are accepted."""
    oscr: float | None
    macro_f1: float | None
    """Macro-F1 over the known classes and `unknown`, at a threshold with the run's false-alarm rate."""
    found: float | None
    """Share of unknown images over the same threshold."""
    passes: float | None
    """Passes through the classifier per image, see `Signals.passes`; None if the bundle cannot be read."""


@dataclass(frozen=True)
class ClassRate:
    """Share of a class's images over the calibrated threshold, with its 95 % interval (Wilson)."""

    name: str
    images: int
    called_unknown: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one run's rows."""

    known: int
    unknown: int
    left_out: int
    """Rows without a label or without a score, and images that the bundle has learned from."""
    closed_set_accuracy: float
    """Accuracy on known images, whatever their unknown score."""
    false_alarm_rate: float
    """Share of known images over the calibrated threshold."""
    unknown_found: float | None
    """Share of unknown images over the calibrated threshold."""
    scores: Mapping[str, ScoreMetrics]
    false_alarms_by_class: tuple[ClassRate, ...]
    """Known classes, that with the largest share first."""
    found_by_class: tuple[ClassRate, ...]
    """Unknown classes, that with the smallest share first."""
    recommendation: Advice | None
    """None with fewer than two known or two unknown images."""
    finished: bool

    def facts(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        advice = self.recommendation and {**asdict(self.recommendation), "sentence": self.recommendation.sentence()}
        return {**asdict(self), "recommendation": advice}


def evaluate_rows(rows: LabelledRows, signals: Signals | None = None) -> Evaluation:
    """Return the metrics of labelled rows; `signals` are those of the bundle, which tell the cost of its detector.

    The cheap scores are columns of the same rows, at the threshold that gives them the unknown score's own false-alarm
    rate.
    """
    unknown, called = rows.unknown, rows.called
    rate = float(called[~unknown].mean())
    scores = {
        name: _metrics(rows, score, called if name == OWN else _flag_at(score, unknown, rate), passes_of(name, signals))
        for name, score in rows.scores.items()
    }
    return Evaluation(
        known=int((~unknown).sum()),
        unknown=int(unknown.sum()),
        left_out=rows.left_out,
        closed_set_accuracy=float(rows.correct[~unknown].mean()),
        false_alarm_rate=rate,
        unknown_found=scores[OWN].found,
        scores=scores,
        false_alarms_by_class=_by_class(rows, ~unknown, -1),
        found_by_class=_by_class(rows, unknown, 1),
        recommendation=advise(rows, signals),
        finished=rows.finished,
    )


def _flag_at(score: Scores, unknown: Flags, rate: float) -> Flags:
    return np.asarray(score > np.quantile(score[~unknown], 1 - rate, method="higher"))


def _metrics(rows: LabelledRows, score: Scores, called: Flags, passes: float | None) -> ScoreMetrics:
    unknown = rows.unknown
    if not rows.both:
        return ScoreMetrics(None, None, None, None, None, passes)
    truth = np.where(unknown, "unknown", rows.labels)
    decided = np.where(called, "unknown", rows.predicted)
    return ScoreMetrics(
        auroc=auroc(score, unknown),
        fpr95=fpr_at_95_tpr(score, unknown),
        oscr=oscr(score, unknown, rows.correct),
        macro_f1=macro_f1(list(truth), list(decided)),
        found=float(called[unknown].mean()),
        passes=passes,
    )


def _by_class(rows: LabelledRows, chosen: Flags, sign: int) -> tuple[ClassRate, ...]:
    names, index = np.unique(rows.labels[chosen].astype(str), return_inverse=True)
    images = np.bincount(index, minlength=len(names))
    called = np.bincount(index, rows.called[chosen], minlength=len(names)).astype(int)
    rates = [
        ClassRate(str(name), int(total), int(count), float(count / total), *wilson(int(count), int(total)))
        for name, total, count in zip(names, images, called, strict=True)
    ]
    return tuple(sorted(rates, key=lambda one: (sign * one.share, -one.images, one.name)))
