"""The account that a run gives of itself in run.json; read without pyarrow, so that a missing run is told at once."""

import json
from typing import Any

from gradosr.bundle.manifest import MANIFEST
from gradosr.errors import InputError, NotFound
from gradosr.store import Store, join


def read_about(store: Store, uri: str) -> dict[str, Any]:
    """Return the content of run.json in the results folder `uri`. Raises InputError if there is no run.

    `bundle` is the URI of the bundle, wherever it is now; runs begun before it was recorded have None. `learned` are
    the ids of the images that the bundle has learned from; their scores are not those of fresh ones.
    """
    try:
        document = json.loads(store.read(join(uri, "run.json")))
        added_later = {name: document.get(name) for name in ("false_alarm_rate", "calibration", "observer", "bundle")}
        added_later["learned"] = document.get("learned", [])
        return {"fingerprint": document["fingerprint"], "classes": document["classes"], **added_later}
    except NotFound as error:
        if store.exists(join(uri, MANIFEST)):
            raise InputError(f"{uri}: a bundle, not results; `gradosr score` makes results with it") from error
        raise InputError(f"{uri}: no results there ({error}); `gradosr score` makes them") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri}: run.json is damaged; choose another output") from error
