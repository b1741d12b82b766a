"""The material of clusters: sampled images over the threshold as vectors, with known images to compare with.

The vectors are the penultimate features that a run stores, compared with those of the bundle's held-out images; or
those of its second network, or the user's own embeddings, compared with those of images of the archive whose p-value
says that they are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradosr.audit.embeddings import read_embeddings
from gradosr.audit.rows import RunTable, shown
from gradosr.audit.space import Reference
from gradosr.audit.tally import Tally
from gradosr.results.part import EMBEDDING
from gradosr.store import Store

Rows = Sequence[Mapping[str, Any]]
_FEWEST_KNOWN = 50
"""Least number of known images with an embedding that tell what is like them."""


@dataclass(frozen=True)
class Material:
    """Images over the threshold, N of them, and what they are compared by."""

    rows: Sequence[dict[str, Any]]
    vectors_NF: NDArray[np.floating]
    predicted_N: NDArray[np.integer]
    """Index of each image's predicted class."""
    reference: Reference | None
    kind: str = "features"
    """The vectors, in a word: features, embedder (the run's second network) or embeddings (the user's own)."""
    without: int = 0
    """Number of images over the threshold that have no vector."""


def vectors_of(table: RunTable) -> str:
    """Return the column of the vectors that images of a run are compared by."""
    return EMBEDDING if "embedder" in table.fingerprint else "features"


def stored(table: RunTable, tally: Tally, reference: Reference | None) -> Material:
    """Return the vectors that a run stores: of its second network, or features, which `reference` has of known images.

    The tally is made with those of `vectors_of`.
    """
    rows, vectors_NF = tally.sample.settled()
    if vectors_of(table) == EMBEDDING:
        reference = _reference(table, *tally.known.settled())
        return Material(rows, vectors_NF, _predicted(table, rows), reference, "embedder", tally.without_vectors)
    if reference is not None and reference.vectors_MF.shape[1] != vectors_NF.shape[1]:
        reference = None
    return Material(rows, vectors_NF, _predicted(table, rows), reference, without=tally.without_vectors)


def embedded(store: Store, uri: str, table: RunTable, tally: Tally) -> Material:
    """Return the user's embeddings of a tally made without vectors. Raises InputError if the file holds none."""
    over, surely = tally.sample.settled()[0], tally.known.settled()[0]
    there_N, vectors_NF = read_embeddings(store, uri, [row["key"] for row in (*over, *surely)])
    rows = [row for row, there in zip(over, there_N, strict=False) if there]
    known = [row for row, there in zip(surely, there_N[len(over) :], strict=True) if there]
    reference = _reference(table, known, vectors_NF[len(rows) :])
    return Material(
        rows, vectors_NF[: len(rows)], _predicted(table, rows), reference, "embeddings", len(over) - len(rows)
    )


def _reference(table: RunTable, known: Rows, vectors_MF: NDArray[np.floating]) -> Reference | None:
    return Reference(vectors_MF, _predicted(table, known)) if len(known) >= _FEWEST_KNOWN else None


def _predicted(table: RunTable, rows: Rows) -> NDArray[np.integer]:
    index = {shown(name): place for place, name in enumerate(table.about["classes"])}
    return np.array([index.get(row["predicted_class"], -1) for row in rows], np.int64)
