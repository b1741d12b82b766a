"""The manifest of a bundle, bundle.json. It is read without torch, so that a run can be planned without it."""

import hashlib
import json
from collections.abc import Collection
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer

from gradosr.config import CalibrationKind, OutputEntry, Precision, Signals, TransformSettings
from gradosr.config.faults import one_fault
from gradosr.config.settings import Settings
from gradosr.errors import BundleError, ConfigError, NotFound, first_line
from gradosr.store import Store, join

VERSION: Literal[1] = 1
MANIFEST, CLASSIFIER, HELD_OUT, EXAMPLES = (
    "bundle.json",
    "classifier.safetensors",
    "signals.safetensors",
    "known.parquet",
)


class CalibrationSummary(Settings):
    """The facts about the calibration that an audit needs; run.json repeats them, so an audit needs no bundle."""

    images: int
    edges: tuple[float, ...]
    """Edges of unknown scores, ascending and evenly spaced; higher = more unknown."""
    counts: tuple[int, ...]
    """Number of calibration images between neighbouring edges."""
    by_class: dict[str, int] | None = None
    """With a calibration per class, the images of each class that has one of its own; the others are compared with all.
    None, and not written, if the calibration is pooled."""

    @property
    def kind(self) -> CalibrationKind:
        """The kind of calibration, as in the config of a fit job."""
        return "pooled" if self.by_class is None else "per_class"

    @model_serializer(mode="wrap")
    def _without_none(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in content(self).items() if value is not None}


class Manifest(Signals):
    """The content of bundle.json; the representation consists of the norms of all objectives, side by side."""

    version: Literal[1] = VERSION
    arch: str
    args: dict[str, Any]
    logits: OutputEntry | None = None
    """Entry of the classifier's output that holds the logits; not written if it is None."""
    classes: tuple[str, ...]
    """Names of the classes in logit order."""
    transform: TransformSettings
    detector: str
    """Kind of the detector, as in the config of a fit job."""
    false_alarm_rate: float
    """Rate of false alarms: is_unknown = p_value <= this."""
    calibration: CalibrationSummary | None = None
    """Summary for float32, filled in when the bundle is saved; None in bundles saved before summaries existed."""
    calibrations: dict[Precision, CalibrationSummary] = {}
    """Summaries for the other precisions in which the detector is calibrated; not written if there are none."""
    files: dict[str, str] = {}
    """SHA-256 of each other file, by name."""
    provenance: dict[str, Any] = {}
    """Origin of the bundle: data, counts, seed, versions, measured closed-set accuracy."""

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions in which the detector is calibrated."""
        return "float32", *self.calibrations

    @property
    def observer(self) -> str:
        """Digest of all that decides what is seen of an image: bundles that have it in common share their signals."""
        names = {"arch", "args", "logits", "classes", "transform", *Signals.model_fields}
        seen_by = self.model_dump(mode="json", include=names, exclude_defaults=True)
        facts = {**seen_by, "weights": self.files.get(CLASSIFIER)}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def learned_from(self) -> list[str]:
        """Ids of the archive images whose labels shaped the bundle; run.json repeats them, and rates leave them out."""
        return [*{one: None for act in ("learned", "extended") for one in self.provenance.get(act, {}).get("ids", ())}]

    def document(self) -> dict[str, Any]:
        """Return the content of bundle.json; fields added later are left out if they are empty."""
        layers = None if self.layers == 1 else self.layers
        later = {"logits": self.logits, "layers": layers, "calibrations": self.calibrations or None}
        return self.model_dump(mode="json", exclude={name for name, value in later.items() if value is None})


def check_precision(wanted: Precision, calibrated: Collection[Precision]) -> None:
    """Raise ConfigError for a precision in which a detector is not calibrated, as its p-values would not hold there."""
    if wanted not in calibrated:
        raise ConfigError(
            f"precision: {wanted}, but the bundle's p-values hold only in {', '.join(calibrated)}; "
            f"fit it with `precisions: [{wanted}]`, or score in float32"
        )


def check_new(store: Store, uri: str, force: str = "") -> None:
    """Raise ConfigError if there is a bundle already; `force` says how to replace it."""
    if store.exists(join(uri, MANIFEST)):
        raise ConfigError(f"{uri}: a bundle is there already; name another folder{force}")


def read_manifest(store: Store, uri: str) -> tuple[Manifest, str]:
    """Read a bundle's manifest and its digest. Raises BundleError in one line."""
    try:
        body = store.read(join(uri, MANIFEST))
    except NotFound as error:
        if store.exists(join(uri, "run.json")):
            raise BundleError(f"{uri}: results, not a bundle; `gradosr fit` makes one") from error
        raise BundleError(f"{uri}: no bundle there (no {MANIFEST}); `gradosr fit` makes one") from error
    try:
        document = json.loads(body)
        version = document.get("version")
        if version != VERSION:
            raise BundleError(f"{uri}: bundle version {version}; this gradosr reads version {VERSION}, fit it again")
        return Manifest.model_validate(document), hashlib.sha256(body).hexdigest()
    except ValidationError as error:
        raise BundleError(f"{uri}: {MANIFEST} is damaged: {one_fault(error)}") from error
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{uri}: {MANIFEST} is damaged: {first_line(error)}") from error


def read_body(store: Store, uri: str, name: str, manifest: Manifest) -> bytes:
    """Read one file of a bundle. Raises BundleError if it is missing, or another than the manifest names."""
    try:
        body = store.read(join(uri, name))
    except NotFound as error:
        raise BundleError(f"{join(uri, name)}: missing, though {MANIFEST} names it; copy the bundle again") from error
    if hashlib.sha256(body).hexdigest() != manifest.files.get(name):
        raise BundleError(
            f"{join(uri, name)}: not the file that {MANIFEST} names (digest differs); copy the bundle again"
        )
    return body
