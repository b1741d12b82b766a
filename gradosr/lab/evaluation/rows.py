"""Open-set metrics from the rows of a run that carry labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.audit.rows import id_of
from gradosr.errors import ConfigError, InputError
from gradosr.lab.evaluation.metrics import auroc, fpr_at_95_tpr, macro_f1, oscr
from gradosr.results.folder import RunFolder
from gradosr.store import Store

COLUMNS = ("status", "label", "predicted_class", "confidence", "max_logit", "energy", "unknown_score", "is_unknown")
SCORES: Mapping[str, tuple[str, int]] = {
    "unknown score": ("unknown_score", 1),
    "MSP": ("confidence", -1),
    "max logit": ("max_logit", -1),
    "energy": ("energy", 1),
}
"""Column and sign by name; the sign makes higher mean more unknown. MSP: maximum softmax probability."""


@dataclass(frozen=True)
class ScoreMetrics:
    """Metrics of one score, unknown against known; None if the rows contain only one of the two."""

    auroc: float | None
    fpr95: float | None
    """Share of unknown images accepted when 95 % of the known are accepted."""
    oscr: float | None
    macro_f1: float
    """Macro-F1 over the N known classes and `unknown`, at a threshold with the run's false-alarm rate."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one run's rows."""

    known: int
    unknown: int
    left_out: int
    """Rows without a label or without a score, and images that the bundle has learned from."""
    closed_set_accuracy: float | None
    """Accuracy on known images, whatever their unknown score."""
    false_alarm_rate: float | None
    """Share of known images called unknown by the calibrated threshold."""
    unknown_found: float | None
    """Share of unknown images called unknown by the calibrated threshold."""
    scores: Mapping[str, ScoreMetrics]
    finished: bool

    def facts(self) -> dict[str, Any]:
        """Return the metrics as plain data."""
        return asdict(self)


def evaluate_run(store: Store, uri: str, known: Sequence[str] = ()) -> Evaluation:
    """Return the metrics of a results folder; `known` defaults to the bundle's classes.

    Baselines are computed from the same rows, at the threshold that gives them the unknown score's own false-alarm
    rate. Raise InputError if no row carries a label, or if the labels are numbers but the classes are names, and
    ConfigError if `known` contains other classes.
    """
    folder = RunFolder(store, uri)
    about = folder.about()
    classes, learned = about["classes"], frozenset(about["learned"])
    if strange := [name for name in known if name not in classes]:
        raise ConfigError(f"--known {', '.join(strange)}: the bundle's classes are {', '.join(classes)}")
    table, finished = folder.table((*COLUMNS, "key") if learned else COLUMNS)
    rows = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["label"])))
    if not len(rows):
        raise InputError(
            f"{uri}: none of {len(table)} rows has a score and a label; "
            "score with input.label_column, .cls members or class folders"
        )
    _check_names(rows, classes, uri)
    if learned:
        rows = rows.filter(pa.array([id_of(key) not in learned for key in rows["key"].to_pylist()], pa.bool_()))
    return _evaluate(rows, known or classes, len(table) - len(rows), finished)


def _check_names(rows: pa.Table, classes: Sequence[str], uri: str) -> None:
    """Raise InputError if the labels are numbers where the classes have names: every image would count as unknown."""
    labels = pc.unique(rows["label"]).to_pylist()
    if all(label.isdecimal() for label in labels) and not set(labels) & set(classes):
        numbers, names = ", ".join(sorted(labels, key=int)[:3]), ", ".join(classes[:3])
        raise InputError(
            f"{uri}: the labels are numbers ({numbers}), the classes are names ({names}); "
            "score with input.label_names, the names in the order of the numbers"
        )


def _evaluate(rows: pa.Table, known: Sequence[str], left_out: int, finished: bool) -> Evaluation:
    labels, predicted = (np.array(rows[name].to_pylist(), dtype=object) for name in ("label", "predicted_class"))
    unknown = ~np.isin(labels.astype(str), list(known))
    correct, flagged = labels == predicted, rows["is_unknown"].to_numpy()
    truth = np.where(unknown, "unknown", labels)
    rate = _mean(flagged[~unknown])
    scores = {}
    for name, (column, sign) in SCORES.items():
        score = sign * rows[column].to_numpy().astype(np.float64)
        calls = flagged if column == "unknown_score" else _flag_at(score, unknown, rate)
        decided = np.where(calls, "unknown", predicted)
        scores[name] = _metrics(score, unknown, correct, macro_f1(list(truth), list(decided)))
    return Evaluation(
        known=int((~unknown).sum()),
        unknown=int(unknown.sum()),
        left_out=left_out,
        closed_set_accuracy=_mean(correct[~unknown]),
        false_alarm_rate=rate,
        unknown_found=_mean(flagged[unknown]),
        scores=scores,
        finished=finished,
    )


def _flag_at(score: NDArray[np.float64], unknown: NDArray[np.bool_], rate: float | None) -> NDArray[np.bool_]:
    if rate is None:
        return np.zeros_like(unknown)
    return np.asarray(score > np.quantile(score[~unknown], 1 - rate, method="higher"))


def _metrics(
    score: NDArray[np.float64], unknown: NDArray[np.bool_], correct: NDArray[np.bool_], f1: float
) -> ScoreMetrics:
    if unknown.all() or not unknown.any():
        return ScoreMetrics(None, None, None, f1)
    return ScoreMetrics(auroc(score, unknown), fpr_at_95_tpr(score, unknown), oscr(score, unknown, correct), f1)


def _mean(flags: NDArray[np.bool_]) -> float | None:
    return float(flags.mean()) if len(flags) else None


def table(evaluation: Evaluation) -> str:
    """Format the metrics for people."""
    lines = [f"{'':15}{'AUROC':>8}{'FPR95':>8}{'OSCR':>8}{'macro-F1':>10}"]
    for name, m in evaluation.scores.items():
        lines.append(
            f"{name:15}{_number(m.auroc):>8}{_number(m.fpr95):>8}{_number(m.oscr):>8}{_number(m.macro_f1):>10}"
        )
    lines += [
        "",
        f"{evaluation.known} known and {evaluation.unknown} unknown images, {evaluation.left_out} rows left out",
        f"closed-set accuracy of the known         {_number(evaluation.closed_set_accuracy)}",
        f"known called unknown (false alarms)      {_number(evaluation.false_alarm_rate)}",
        f"unknown called unknown                   {_number(evaluation.unknown_found)}",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
