"""The held-out known images of a bundle, with which an audit tells what is like them, and which it shows beside others.

An audit needs no bundle. It reads the one that the run was scored with where it still is, and otherwise does without.

M held-out images, F features.
"""

from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy

from gradosr.audit.rows import RunTable
from gradosr.audit.space import Reference
from gradosr.bundle.examples import KnownExamples, read_examples
from gradosr.bundle.manifest import HELD_OUT, Manifest, read_body, read_manifest
from gradosr.config import AuditSettings
from gradosr.errors import BundleError, GradosrError, first_line
from gradosr.store import Store

GONE = "clusters are found without known images to compare with"


@dataclass(frozen=True)
class Known:
    """The held-out images that a bundle keeps; empty for one that keeps none or cannot be read."""

    reference: Reference | None = None
    examples: KnownExamples | None = None


def bundle_of(store: Store, table: RunTable, settings: AuditSettings) -> tuple[str | None, str | None]:
    """Return the URI of the bundle that a run was scored with, if it can be read, and otherwise a note that says why.

    Both are None if nobody says where the bundle is.
    """
    uri = settings.bundle or table.about["bundle"]
    if uri is None:
        return None, None
    try:
        _, digest = read_manifest(store, uri)
    except GradosrError as error:
        return None, f"the bundle cannot be read ({first_line(error)})"
    if digest != table.fingerprint["bundle"]:
        return None, f"{uri}: not the bundle that the run was scored with"
    return uri, None


def read_known(store: Store, table: RunTable, settings: AuditSettings) -> tuple[Known, list[str]]:
    """Read the known images of a run's bundle; return them with notes on what could not be read."""
    uri, note = bundle_of(store, table, settings)
    if uri is None:
        return Known(), [f"{note}: {GONE}"] if note else []
    try:
        manifest, _ = read_manifest(store, uri)
        return Known(_reference(store, uri, manifest), read_examples(store, uri, manifest)), []
    except GradosrError as error:
        return Known(), [f"the bundle cannot be read ({first_line(error)}): {GONE}"]


def _reference(store: Store, uri: str, manifest: Manifest) -> Reference | None:
    """Read the features of the held-out images, in float32; None in bundles that keep none."""
    if HELD_OUT not in manifest.files:
        return None
    try:
        arrays = safetensors.numpy.load(read_body(store, uri, HELD_OUT, manifest))
    except safetensors.SafetensorError as error:
        raise BundleError(f"{uri}: {HELD_OUT}: not a safetensors file: {first_line(error)}") from error
    uses = [use for use in ("fitting", "calibration.float32") if f"{use}.features" in arrays]
    if not uses:
        return None
    features_MF = np.concatenate([arrays[f"{use}.features"] for use in uses]).astype(np.float32)
    logits_MK = np.concatenate([arrays[f"{use}.logits"] for use in uses])
    return Reference(features_MF, logits_MK.argmax(1))
