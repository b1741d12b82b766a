"""Exact counts of an archive's images by p-value.

A p-value is j / N, where N - 1 calibration images are compared with. A pooled calibration has one N; one per class has
an N for each class, and the p-values that it allows are those of all its classes together. The p-values of known images
are valid in either case, and so is what is concluded from them. That goes for flags as well: images of different
classes are compared with different calibration images, so p-values depend on each other within a class alone, and there
as they do in a pooled calibration (positive regression dependence, which Benjamini-Hochberg allows).

K classes, G groups of classes that are compared with the same calibration images, V possible p-values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradosr.bundle.manifest import CalibrationSummary

Floats = NDArray[np.float64]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class PValues:
    """The images of an archive by p-value, over all p-values that the calibration allows, ascending."""

    values_V: Floats
    images_V: Integers
    """Number of images that have the p-value."""
    known_V: Floats
    """Expected share of known images with at most this p-value; the p-value itself, if the calibration is pooled."""
    highest: int
    """Number of images that score above all calibration images that they are compared with."""
    lowest: float
    """The p-value of such images; where it differs by class, the largest."""
    calibration_images: int
    effective: float
    """Number of images of a pooled calibration in which shares of known images would vary as much as in this one."""
    per_class: bool

    @classmethod
    def pooled(cls, counts_N: Integers) -> "PValues":
        """Take the counts of a pooled calibration: `counts_N[j]` images have the p-value (j + 1) / N."""
        return cls.of([counts_N], len(counts_N) - 1, per_class=False)

    @classmethod
    def of(cls, counts: Sequence[Integers], calibration_images: int, *, per_class: bool) -> "PValues":
        """Take the counts of each group, as of a pooled calibration.

        The share of a group among known images, which nobody knows, is taken to be that among all images.
        """
        sizes_G, images_G = np.array([len(one) for one in counts]), np.array([int(one.sum()) for one in counts])
        share_G = images_G / images_G.sum() if images_G.sum() else np.full(len(counts), 1 / len(counts))
        values = np.concatenate([np.arange(1, size + 1) / size for size in sizes_G])
        order = np.argsort(values, kind="stable")
        # Equal in float32, as tables have them, is equal: no cut can be laid between such p-values.
        last = np.flatnonzero(np.diff(values[order].astype(np.float32), append=np.inf))
        weights = np.repeat(share_G * (sizes_G.max() / sizes_G), sizes_G)[order].cumsum()
        images = np.concatenate(counts)[order].astype(np.int64).cumsum()
        return cls(
            values_V=values[order][last],
            images_V=np.diff(images[last], prepend=0),
            known_V=weights[last] / weights[-1],
            highest=sum(int(one[0]) for one in counts),
            lowest=float(1 / sizes_G[images_G > 0].min(initial=sizes_G.max())),
            calibration_images=calibration_images,
            effective=float(np.round(1 / (share_G**2 / (sizes_G + 1)).sum() - 2, 6)),
            per_class=per_class,
        )

    @property
    def images(self) -> int:
        """The number of images with a p-value."""
        return int(self.images_V.sum())

    def up_to(self, p_value: float) -> int:
        """Return how many possible p-values are at most this one."""
        return int(np.searchsorted(self.values_V, p_value * (1 + 1e-9), side="right"))


class PValueCounts:
    """Counts of images by p-value, filled part by part; float32 tells p-values of up to 4 million images apart."""

    def __init__(self, calibration: CalibrationSummary, classes: Sequence[str]) -> None:
        own: Mapping[str, int] = calibration.by_class or {}
        names = [name for name in classes if name in own]
        sizes = [own[name] + 1 for name in names]
        if len(names) < len(classes) or not classes:
            sizes.append(calibration.images + 1)
        group = {name: number for number, name in enumerate(names)}
        self._calibration = calibration
        self._group_K = np.array([group.get(name, len(names)) for name in classes], np.int64)
        self._sizes_G = np.array(sizes)
        self._first_G = np.concatenate([[0], np.cumsum(sizes)])
        self._counts = np.zeros(int(self._first_G[-1]), np.int64)
        self.strange = 0
        """Number of p-values that the calibration cannot give."""

    def add(self, p_values: NDArray[np.float32], predicted: Integers) -> None:
        """Add p-values of images with these predicted classes to the counts."""
        groups = self._group_K.take(predicted, mode="clip")
        sizes = self._sizes_G[groups]
        exact = p_values.astype(np.float64) * sizes
        ranks = np.rint(exact)
        valid = (np.abs(exact - ranks) < 0.25) & (ranks >= 1) & (ranks <= sizes)
        self.strange += int((~valid).sum())
        cells, counts = np.unique((self._first_G[groups] + ranks.astype(np.int64) - 1)[valid], return_counts=True)
        self._counts[cells] += counts

    def settled(self) -> PValues:
        """Return the counts in order of the p-values."""
        by_group = np.split(self._counts, self._first_G[1:-1])
        calibration = self._calibration
        return PValues.of(by_group, calibration.images, per_class=calibration.kind == "per_class")
