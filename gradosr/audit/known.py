"""The bundle of a run, which an audit reads where it still is and otherwise does without."""

from gradosr.audit.rows import RunTable
from gradosr.bundle.manifest import read_manifest
from gradosr.config import AuditSettings
from gradosr.errors import GradosrError, first_line
from gradosr.store import Store


def bundle_of(store: Store, table: RunTable, settings: AuditSettings) -> tuple[str | None, str | None]:
    """Return the URI of the bundle that a run was scored with, if it can be read, and otherwise a note that says why.

    Both are None if nobody says where the bundle is.
    """
    uri = settings.bundle or table.about.get("bundle")
    if uri is None:
        return None, None
    try:
        _, digest = read_manifest(store, uri)
    except GradosrError as error:
        return None, f"the bundle cannot be read ({first_line(error)})"
    if digest != table.fingerprint["bundle"]:
        return None, f"{uri}: not the bundle that the run was scored with"
    return uri, None
