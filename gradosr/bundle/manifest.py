"""bundle.json: what a bundle says of itself. Read without torch, so that a run can be planned without it."""

import hashlib
import json
from typing import Any, Literal

from pydantic import ValidationError

from gradosr.config import OutputEntry, Signals, TransformSettings
from gradosr.config.settings import Settings
from gradosr.errors import BundleError, NotFound, first_line
from gradosr.store import Store, join

VERSION: Literal[1] = 1
MANIFEST = "bundle.json"


class CalibrationSummary(Settings):
    """What an audit needs of the calibration: it goes into run.json, so that a results folder explains itself."""

    images: int
    edges: tuple[float, ...]
    """Ascending, evenly spaced: of the unknown score, higher = more unknown."""
    counts: tuple[int, ...]
    """Calibration images between two edges."""


class Manifest(Signals):
    """bundle.json; the representation is the norms of all objectives side by side."""

    version: Literal[1] = VERSION
    arch: str
    args: dict[str, Any]
    logits: OutputEntry | None = None
    """Entry of the classifier's output; not written where none is named: such bundles stay as they were without it."""
    classes: tuple[str, ...]
    """In logit order."""
    transform: TransformSettings
    detector: str
    """A key of gradosr.detectors.DETECTORS."""
    false_alarm_rate: float
    """is_unknown = p_value <= this."""
    calibration: CalibrationSummary | None = None
    """Filled in when the bundle is saved; None in one that was saved before there was a summary."""
    files: dict[str, str] = {}
    """SHA-256 of each other file."""
    provenance: dict[str, Any] = {}
    """Where it comes from: data, counts, seed, versions, measured closed-set accuracy."""


def read_manifest(store: Store, uri: str) -> tuple[Manifest, str]:
    """The manifest and its digest. Raises BundleError in one line."""
    try:
        body = store.read(join(uri, MANIFEST))
    except NotFound as error:
        raise BundleError(f"{uri}: no bundle there (no {MANIFEST}); `gradosr fit` makes one") from error
    try:
        document = json.loads(body)
        version = document.get("version")
        if version != VERSION:
            raise BundleError(f"{uri}: bundle version {version}; this gradosr reads version {VERSION}, fit it again")
        return Manifest.model_validate(document), hashlib.sha256(body).hexdigest()
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise BundleError(f"{uri}: {MANIFEST} is damaged: {where}: {fault['msg']}") from error
    except (ValueError, AttributeError) as error:
        raise BundleError(f"{uri}: {MANIFEST} is damaged: {first_line(error)}") from error
