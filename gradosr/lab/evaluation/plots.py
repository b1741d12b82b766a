"""Plots as SVG: of a run its ROC and risk-coverage curves, of a protocol ROC, score histograms, coordinates, p-values.

Importing this module raises ConfigError if matplotlib is not installed.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from gradosr.config import OsrProtocol
from gradosr.errors import ConfigError, InputError
from gradosr.lab.evaluation.metrics import Scores, auroc, risk_coverage
from gradosr.lab.evaluation.protocol import TEST, TaskScores
from gradosr.lab.evaluation.rows import OWN, LabelledRows

try:  # imported here so that it fails before hours of work
    from matplotlib.figure import Figure
except ImportError as error:
    raise ConfigError("plots need matplotlib: pip install 'gradosr[evaluate]'") from error

SHOWN = 8
"""Largest number of detectors in one plot."""
SHARES = (-0.02, 1.02)
"""Limits of an axis of shares, with room for a dot at either end."""
DOT: Mapping[str, Any] = {"marker": "o", "color": "C0", "linestyle": "none", "zorder": 4, "clip_on": False}
LEAST_COVERAGE = 0.01
"""Coverage from which on risk is drawn; below it, a handful of images decides."""
POINTS = 1000
"""Largest number of points of a run's curve, which could have one for each of millions of images."""


def plots(protocol: OsrProtocol, tasks: Sequence[TaskScores]) -> dict[str, bytes]:
    """Return SVG files by name, each with one panel per task."""
    drawn: dict[str, Callable[[Any, OsrProtocol, TaskScores], None]] = {
        "roc": _roc,
        "scores": _scores,
        "p_values": _p_values,
        "coordinates": _coordinates,
    }
    files = {}
    for name, draw in drawn.items():
        figure = Figure(figsize=(4.5 * len(tasks), 4), layout="constrained")
        for place, task in enumerate(tasks, 1):
            axes = figure.add_subplot(1, len(tasks), place, title=task.name)
            draw(axes, protocol, task)
        files[f"{name}.svg"] = _svg(figure)
    return files


def curves(rows: LabelledRows) -> dict[str, bytes]:
    """Return the curves of a run's scores as SVG files by name; a dot shows where the calibrated threshold is.

    Raises InputError if there are no unknown images.
    """
    if not rows.both:
        raise InputError(f"{rows.uri}: no labelled image is unknown, and a curve needs known and unknown ones")
    unknown, wrong = rows.unknown, rows.unknown | ~rows.correct
    roc, risk = (Figure(figsize=(5, 4.5), layout="constrained") for _ in range(2))
    roc_axes, risk_axes = roc.add_subplot(), risk.add_subplot()
    for name, score in rows.scores.items():
        style: dict[str, Any] = {"linewidth": 2 if name == OWN else 1, "zorder": 3 if name == OWN else 2}
        false, true, _ = roc_curve(unknown, score)
        roc_axes.plot(*_thinned(false, true), label=f"{name}, AUROC {auroc(score, unknown):.3f}", **style)
        coverage, share_wrong = risk_coverage(score, wrong)
        kept = coverage >= LEAST_COVERAGE
        risk_axes.plot(*_thinned(coverage[kept], share_wrong[kept]), label=name, **style)
    called, dot = rows.called, {**DOT, "label": "the run's threshold"}
    roc_axes.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=1, label="chance")
    roc_axes.plot(called[~unknown].mean(), called[unknown].mean(), **dot)
    if not called.all():
        risk_axes.plot((~called).mean(), wrong[~called].mean(), **dot)
    roc_axes.set(xlabel="share of known images over the threshold", ylabel="share of unknown images found")
    risk_axes.set(
        xlabel="coverage: share of all images under the threshold", ylabel="risk: share of these that is wrong"
    )
    roc_axes.set(xlim=SHARES, ylim=SHARES, aspect="equal")
    risk_axes.set(xlim=SHARES, ylim=(0, None))
    for axes in (roc_axes, risk_axes):
        axes.grid(color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize="small")
    return {"roc.svg": _svg(roc), "risk-coverage.svg": _svg(risk)}


def _thinned(x: Scores, y: Scores) -> tuple[Scores, Scores]:
    """Return at most POINTS points of a curve, its ends among them."""
    kept = np.unique(np.linspace(0, len(x) - 1, POINTS).astype(int))
    return x[kept], y[kept]


def _svg(figure: Figure) -> bytes:
    body = io.BytesIO()
    figure.savefig(body, format="svg", metadata={"Date": None})
    return body.getvalue()


def _unknown(task: TaskScores) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return ~np.isin(np.array(task.of(TEST)["label"].to_pylist(), dtype=str), list(task.classes))


def _roc(axes: Any, protocol: OsrProtocol, task: TaskScores) -> None:
    unknown, rows = _unknown(task), task.of(TEST)
    if not unknown.any():
        return
    for name in list(protocol.detectors)[:SHOWN]:
        false, true, _ = roc_curve(unknown, rows[name].to_numpy())
        axes.plot(false, true, label=name, linewidth=1)
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.set(xlabel="share of known images over the threshold", ylabel="share of unknown images found")
    axes.legend(fontsize="x-small")


def _scores(axes: Any, protocol: OsrProtocol, task: TaskScores) -> None:
    first, unknown = next(iter(protocol.detectors)), _unknown(task)
    test = task.of(TEST)[first].to_numpy()
    sets = {"known": test[~unknown], "unknown": test[unknown]}
    sets |= {name: task.of(name)[first].to_numpy() for name in protocol.far}
    low, high = np.quantile(np.concatenate(list(sets.values())), [0.001, 0.97])
    for name, scores in sets.items():
        if not len(scores):
            continue
        axes.hist(scores.clip(low, high), 60, range=(low, high), density=True, histtype="step", label=name)
    axes.set(xlabel=f"unknown score, {first}", ylabel="density")
    axes.legend(fontsize="x-small")


def _p_values(axes: Any, protocol: OsrProtocol, task: TaskScores) -> None:
    first, unknown = next(iter(protocol.detectors)), _unknown(task)
    p_values = task.p_values(protocol, first)
    for name, rows in (("known", ~unknown), ("unknown", unknown)):
        if not rows.any():
            continue
        axes.hist(p_values[rows], 20, range=(0, 1), density=True, histtype="step", label=name)
    axes.axhline(1, color="0.8", linewidth=1)
    axes.set(xlabel="p-value", ylabel="density")
    axes.legend(fontsize="x-small")


def _coordinates(axes: Any, _protocol: OsrProtocol, task: TaskScores) -> None:
    objectives = list(dict.fromkeys(name.partition("/")[0] for name in task.coordinates))
    if not objectives:
        return
    for number, objective in enumerate(objectives):
        values = [value for name, value in task.coordinates.items() if name.startswith(f"{objective}/")]
        places = np.arange(len(values)) + 0.8 * number / len(objectives)
        axes.bar(places, np.array(values) - 0.5, 0.8 / len(objectives), 0.5, label=objective)
    axes.set(xlabel="parameter tensor, in order", ylabel="AUROC of the coordinate alone", ylim=(0, 1))
    axes.legend(fontsize="x-small")
