"""Tables of a protocol's results: metrics by task and detector, compared with the best baseline."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gradosr.config import OsrProtocol
from gradosr.lab.evaluation.metrics import auroc, fpr_at_95_tpr, macro_f1, oscr
from gradosr.lab.evaluation.protocol import TaskScores, is_baseline

METRICS = ("auroc", "fpr95", "oscr", "macro_f1")
CONFIDENCE = 0.95
Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class DetectorMetrics:
    """Metrics of one detector on one task's test images; nan if all their classes are known."""

    auroc: float
    fpr95: float
    """Share of unknown images accepted when 95 % of the known are accepted."""
    oscr: float
    macro_f1: float
    """Macro-F1 over the known classes and `unknown`, at the calibrated threshold."""
    false_alarms: float
    """Share of known images over the calibrated threshold."""
    false_alarms_by_class: Mapping[str, float]
    found: float
    """Share of unknown images over the calibrated threshold."""
    far: Mapping[str, float]
    """AUROC of far images against the known test images."""
    far_macro_f1: Mapping[str, float]
    """Macro-F1 of far images and known test images over the known classes and `unknown`, at the calibrated
    threshold."""


@dataclass(frozen=True)
class TaskMetrics:
    """Metrics of all detectors on one task."""

    name: str
    classes: tuple[str, ...]
    known: int
    unknown: int
    accuracy: float
    """Closed-set accuracy on the known test images."""
    detectors: Mapping[str, DetectorMetrics]
    best_baseline: str
    """Baseline with the highest AUROC on this task's test images."""
    best_far: Mapping[str, tuple[str, float, float]]
    """Baseline with the highest AUROC for each set of far images, and its bootstrap interval."""
    coordinates: Mapping[str, float]


def measure(protocol: OsrProtocol, scores: TaskScores) -> TaskMetrics:
    """Return the metrics of one task; bootstrap intervals resample known and far images separately."""
    test = scores.of("test")
    labels, predicted = (np.array(test[name].to_pylist(), dtype=str) for name in ("label", "predicted"))
    unknown = ~np.isin(labels, list(scores.classes))
    far = [name for name in protocol.far if len(scores.of(name))]
    names = [name for name in scores.rows.column_names if name not in ("set", "key", "label", "predicted")]
    known_of = {name: test[name].to_numpy()[~unknown] for name in names}
    far_of = {name: {one: scores.of(one)[name].to_numpy() for one in far} for name in names}
    both, baselines, detectors = unknown.any(), _baselines(protocol, names), {}
    for name in names:
        score, over = test[name].to_numpy(), scores.p_values(protocol, name) <= protocol.false_alarm_rate
        decided, truth = np.where(over, "unknown", predicted), np.where(unknown, "unknown", labels)
        detectors[name] = DetectorMetrics(
            auroc=auroc(score, unknown) if both else np.nan,
            fpr95=fpr_at_95_tpr(score, unknown) if both else np.nan,
            oscr=oscr(score, unknown, labels == predicted) if both else np.nan,
            macro_f1=macro_f1(list(truth), list(decided)) if both else np.nan,
            false_alarms=float(over[~unknown].mean()),
            false_alarms_by_class={k: float(over[labels == k].mean()) for k in scores.classes},
            found=float(over[unknown].mean()) if both else np.nan,
            far={one: _auroc(known_of[name], far_of[name][one]) for one in far},
            far_macro_f1={one: _far_f1(protocol, scores, name, one, truth[~unknown], decided[~unknown]) for one in far},
        )

    def best_on(one: str) -> tuple[str, float, float]:
        best = max(baselines, key=lambda name: detectors[name].far[one])
        return best, *bootstrap(known_of[best], far_of[best][one], protocol.resamplings, protocol.seed)

    return TaskMetrics(
        name=scores.name,
        classes=scores.classes,
        known=int((~unknown).sum()),
        unknown=int(unknown.sum()),
        accuracy=float((labels == predicted)[~unknown].mean()),
        detectors=detectors,
        best_baseline=max(baselines, key=lambda name: detectors[name].auroc),
        best_far={one: best_on(one) for one in far},
        coordinates=scores.coordinates,
    )


def _baselines(protocol: OsrProtocol, names: list[str]) -> list[str]:
    """Return the published detectors among those of a table; the first detector where there is none."""
    settings = {name: one for task in protocol.tasks for name, one in task.detectors.items()} | protocol.detectors
    return [name for name in names if is_baseline(settings[name])] or names[:1]


def _far_f1(
    protocol: OsrProtocol, scores: TaskScores, name: str, far: str, truth: NDArray[Any], decided: NDArray[Any]
) -> float:
    rows = scores.of(far)
    over = scores.p_values(protocol, name, far) <= protocol.false_alarm_rate
    calls = np.where(over, "unknown", np.array(rows["predicted"].to_pylist(), dtype=str))
    return macro_f1([*truth, *["unknown"] * len(calls)], [*decided, *calls])


def _auroc(known: Floats, far: Floats) -> float:
    return auroc(np.concatenate([known, far]), np.arange(len(known) + len(far)) >= len(known))


def bootstrap(known: Floats, far: Floats, resamplings: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of the AUROC of `far` against `known`."""
    draws = np.random.default_rng(seed)
    # Ranks are computed once, not per resampling: the AUROC of a resampling is a mean over pairs of rows.
    ranks = rankdata(np.concatenate([known, far]))
    known, far = np.sort(ranks[: len(known)]), ranks[len(known) :]
    values = []
    for _ in range(resamplings):
        drawn, others = np.sort(draws.choice(known, len(known))), draws.choice(far, len(far))
        below = np.searchsorted(drawn, others, "left") + np.searchsorted(drawn, others, "right")
        values.append(below.mean() / 2 / len(known))
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def markdown(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    """Format all tables, separately for each architecture, because a mean over several describes none of them."""
    archs = {task.name: task.classifier.arch for task in protocol.tasks}
    groups = {archs[task.name]: [one for one in tasks if archs[one.name] == archs[task.name]] for task in tasks}
    if len(groups) == 1:
        return _tables(protocol, tasks)
    return "\n".join(f"## {arch}\n\n{_tables(protocol, group)}" for arch, group in groups.items())


def _tables(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    open_tasks = [task for task in tasks if task.unknown]
    sections = [
        ("AUROC, test images of unknown against known classes", _by_task(protocol, open_tasks)),
        ("Mean and standard deviation over the tasks", _means(protocol, open_tasks)),
        ("The first detector against the best baseline of each task", _against(protocol, open_tasks)),
        ("AUROC, far images against the test images of known classes", _far(protocol, tasks)),
        ("Macro-F1 over the known classes and unknown, of known test images and far images", _far_f1s(protocol, tasks)),
        (f"Known test images over the threshold, p <= {protocol.false_alarm_rate:g}", _calibrated(protocol, tasks)),
        ("AUROC of single coordinates, log of the squared norm", _coordinates(tasks)),
    ]
    return "\n\n".join(f"### {title}\n\n{body}" for title, body in sections if body) + "\n"


def _far_f1s(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    sets = [name for name in protocol.far if all(name in task.best_far for task in tasks)]
    rows = [
        [name, *(_spread([task.detectors[name].far_macro_f1[one] for task in tasks]) for one in sets)]
        for name in _shared(protocol, tasks)
    ]
    return _table(["", *sets], rows) if sets else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shared(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> list[str]:
    """Return the detectors that every task has, in the protocol's order."""
    return [name for name in protocol.detectors if all(name in task.detectors for task in tasks)]


def _named(protocol: OsrProtocol, name: str) -> str:
    settings = protocol.detectors[name]
    views = "image and mirror" if settings.signals.mirror else "image"
    passes = len(settings.signals.objectives)
    return f"{name} ({views}; {passes} backward)" if passes else f"{name} ({views})"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{deviation}"


def _by_task(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    if not tasks:
        return ""
    rows = []
    for name in _shared(protocol, tasks):
        values = [task.detectors[name].auroc for task in tasks]
        rows.append([_named(protocol, name), *(f"{value:.4f}" for value in values), _spread(values)])
    own = {name: None for task in tasks for name in task.detectors if name not in protocol.detectors}
    for name in own:
        found = [task.detectors.get(name) for task in tasks]
        rows.append([name, *(f"{one.auroc:.4f}" if one else "" for one in found), ""])
    rows.append(
        ["closed-set accuracy", *(f"{task.accuracy:.4f}" for task in tasks), _spread([t.accuracy for t in tasks])]
    )
    return _table(["", *(task.name for task in tasks), "mean"], rows)


def _means(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    if not tasks:
        return ""
    return _table(
        ["", "AUROC", "FPR95", "OSCR", "macro-F1", "unknown found"],
        (
            [name, *(_spread([getattr(task.detectors[name], key) for task in tasks]) for key in (*METRICS, "found"))]
            for name in _shared(protocol, tasks)
        ),
    )


def _against(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    if not tasks:
        return ""
    first = next(iter(protocol.detectors))
    rows = []
    gains = []
    for task in tasks:
        own, best = task.detectors[first].auroc, task.detectors[task.best_baseline].auroc
        gains.append(own - best)
        rows.append([task.name, f"{own:.4f}", f"{best:.4f} ({task.best_baseline})", f"{100 * (own - best):+.2f}"])
    rows.append(["mean", "", "", f"{100 * np.mean(gains):+.2f}"])
    return _table(["", first, "best baseline", "points"], rows)


def _far(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    sets = [name for name in protocol.far if all(name in task.best_far for task in tasks)]
    if not sets:
        return ""
    rows = [
        [name, *(_spread([task.detectors[name].far[one] for task in tasks]) for one in sets)]
        for name in _shared(protocol, tasks)
    ]
    first = next(iter(protocol.detectors))
    for task in tasks:
        cells = [
            f"{task.detectors[first].far[one]:.4f}; {task.best_far[one][0]} {_interval(*task.best_far[one][1:])}"
            for one in sets
        ]
        rows.append([f"{task.name}: {first}; best baseline, {CONFIDENCE:.0%} interval", *cells])
    return _table(["", *sets], rows)


def _interval(low: float, high: float) -> str:
    return f"{low:.4f} to {high:.4f}"


def _calibrated(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> str:
    first = next(iter(protocol.detectors))
    rows = []
    for task in tasks:
        measured = task.detectors[first]
        classes = ", ".join(f"{name} {rate:.3f}" for name, rate in measured.false_alarms_by_class.items())
        rows.append([task.name, f"{measured.false_alarms:.4f}", classes])
    return _table([f"{first}", "all", "by class"], rows)


def _coordinates(tasks: Sequence[TaskMetrics]) -> str:
    """Format the lowest, highest and median AUROC of single coordinates for each task and objective."""
    rows = []
    for task in tasks:
        objectives = dict.fromkeys(name.partition("/")[0] for name in task.coordinates)
        for objective in objectives:
            own = {n: v for n, v in task.coordinates.items() if n.startswith(f"{objective}/")}
            least, most = min(own, key=lambda name: own[name]), max(own, key=lambda name: own[name])
            median = float(np.median(list(own.values())))
            ends = (f"{own[one]:.4f} {one.partition('/')[2]}" for one in (least, most))
            rows.append([task.name, objective, str(len(own)), *ends, f"{median:.4f}"])
    return _table(["", "objective", "coordinates", "least", "highest", "median"], rows)


def document(protocol: OsrProtocol, tasks: Sequence[TaskMetrics]) -> dict[str, Any]:
    """Return the results as plain data, with null for missing figures."""
    return {"first": next(iter(protocol.detectors)), "tasks": [_plain(asdict(task)) for task in tasks]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value
