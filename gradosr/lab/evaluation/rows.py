"""The rows of a run that have a label and a score, as an evaluation sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradosr.audit.rows import id_of
from gradosr.errors import ConfigError, InputError
from gradosr.results.folder import RunFolder
from gradosr.store import Store
from gradosr.text import plural, printable

COLUMNS = ("status", "label", "predicted_class", "confidence", "max_logit", "energy", "unknown_score", "is_unknown")
OWN = "unknown score"
SCORES: Mapping[str, tuple[str, int]] = {
    OWN: ("unknown_score", 1),
    "MSP": ("confidence", -1),
    "max logit": ("max_logit", -1),
    "energy": ("energy", 1),
}
"""Column and sign by name; the sign makes higher mean more unknown. MSP: maximum softmax probability."""
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledRows:
    """The images that an evaluation counts, at least one of them known; every array has a value per image."""

    uri: str
    labels: NDArray[np.object_]
    predicted: NDArray[np.object_]
    unknown: Flags
    """The truth by the labels."""
    called: Flags
    """Whether the calibrated threshold calls the image unknown."""
    scores: Mapping[str, NDArray[np.float64]]
    """Scores by the names of SCORES, higher = more unknown."""
    left_out: int
    finished: bool

    @property
    def correct(self) -> Flags:
        """Images that the classifier gives their label."""
        return np.asarray(self.labels == self.predicted, np.bool_)

    @property
    def both(self) -> bool:
        """Whether there are unknown images as well as known ones."""
        return bool(self.unknown.any())


def read_rows(store: Store, uri: str, known: Sequence[str] = ()) -> LabelledRows:
    """Read the labelled rows of a results folder; `known` defaults to the bundle's classes.

    Raise InputError if no row carries a label or none is of a known class, or if the labels are numbers but the classes
    are names, and ConfigError if `known` contains other classes.
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
    return _labelled(rows, tuple(known or classes), uri, len(table) - len(rows), finished)


def _check_names(rows: pa.Table, classes: Sequence[str], uri: str) -> None:
    """Raise InputError if the labels are numbers where the classes have names: every image would count as unknown."""
    labels = pc.unique(rows["label"]).to_pylist()
    if all(label.isdecimal() for label in labels) and not set(labels) & set(classes):
        numbers, names = ", ".join(sorted(labels, key=int)[:3]), ", ".join(classes[:3])
        raise InputError(
            f"{uri}: the labels are numbers ({numbers}), the classes are names ({names}); "
            "score with input.label_names, the names in the order of the numbers"
        )


def _labelled(rows: pa.Table, known: tuple[str, ...], uri: str, left_out: int, finished: bool) -> LabelledRows:
    labels, predicted = (np.array(rows[name].to_pylist(), dtype=object) for name in ("label", "predicted_class"))
    unknown = ~np.isin(labels.astype(str), list(known))
    if unknown.all():
        raise InputError(_no_known(labels, known, uri))
    return LabelledRows(
        uri=uri,
        labels=labels,
        predicted=predicted,
        unknown=unknown,
        called=rows["is_unknown"].to_numpy(),
        scores={name: sign * rows[column].to_numpy().astype(np.float64) for name, (column, sign) in SCORES.items()},
        left_out=left_out,
        finished=finished,
    )


def _no_known(labels: NDArray[Any], known: Sequence[str], uri: str) -> str:
    if not len(labels):
        return f"{uri}: the bundle has learned from every labelled image; label others"
    seen = ", ".join(printable(name) for name in sorted(set(labels))[:3])
    return (
        f"{uri}: {plural(len(labels), 'labelled image')} and none of a known class: the labels are {seen}, the known "
        f"classes {', '.join(known[:3])}; every figure needs known images, labelled by these names"
    )
