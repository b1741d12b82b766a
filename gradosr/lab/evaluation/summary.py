"""The metrics of a run's rows as text for a terminal."""

from collections.abc import Sequence

from gradosr.audit.text import shortened
from gradosr.lab.evaluation.evaluation import ClassRate, Evaluation

MOST_CLASSES = 10
"""Classes that are listed of known and of unknown ones; all are in the JSON document."""
_WIDTH = 40


def table(evaluation: Evaluation) -> str:
    """Format the metrics for people."""
    lines = [f"{'':15}{'AUROC':>8}{'FPR95':>8}{'OSCR':>8}{'macro-F1':>10}{'found':>8}{'passes':>8}"]
    for name, m in evaluation.scores.items():
        passes = "-" if m.passes is None else f"{m.passes:g}"
        numbers = f"{_number(m.auroc):>8}{_number(m.fpr95):>8}{_number(m.oscr):>8}{_number(m.macro_f1):>10}"
        lines.append(f"{name:15}{numbers}{_number(m.found):>8}{passes:>8}")
    lines += [
        "found: share of unknown images over the threshold, at the same rate of false alarms",
        "passes: through the classifier per image, forward and, as far as they go, backward",
        "",
        f"{evaluation.known} known and {evaluation.unknown} unknown images, {evaluation.left_out} rows left out",
        f"{'closed-set accuracy of the known':{_WIDTH}} {_number(evaluation.closed_set_accuracy)}",
        f"{'known over the threshold (false alarms)':{_WIDTH}} {_number(evaluation.false_alarm_rate)}",
        f"{'unknown over the threshold (found)':{_WIDTH}} {_number(evaluation.unknown_found)}",
        *_classes("false alarms by known class, most first", evaluation.false_alarms_by_class),
        *_classes("found by unknown class, fewest first", evaluation.found_by_class),
    ]
    if evaluation.recommendation:
        lines += ["", evaluation.recommendation.sentence()]
    return "\n".join(lines)


def _classes(title: str, rates: Sequence[ClassRate]) -> list[str]:
    if not rates:
        return []
    lines = ["", f"{title:{_WIDTH}} {'share':>6}   {'95 % interval':16} {'images':>8}"]
    for one in rates[:MOST_CLASSES]:
        name = shortened(one.name, _WIDTH - 4)
        lines.append(f"  {name:{_WIDTH - 2}} {one.share:.4f}   {one.low:.4f} to {one.high:.4f} {one.images:>8}")
    if more := len(rates) - MOST_CLASSES:
        lines += [f"  and {more} more (--json)"] if more > 0 else []
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
