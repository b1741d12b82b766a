"""label.html: one page for labelling that needs neither network nor server, by keyboard alone and by touch.

Like the page of an audit it allows its own style sheet and script alone, by their hashes. Its images are data in a
script element that is not run; the script puts every text from the archive into the page as text.
"""

import base64
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gradosr.audit import export, text
from gradosr.audit.pictures import REASONS, Picture, Pictures
from gradosr.audit.report import embedded, render_page
from gradosr.audit.rows import RunTable

NAME = "label.html"


def render(table: RunTable, rows: Sequence[Mapping[str, Any]], shown: Pictures, token: str) -> str:
    """Render the page of one round; `token` tells it from every other in a browser's memory."""
    alike: dict[str | None, int] = {}
    for row in rows:
        alike[row["cluster"]] = alike.get(row["cluster"], 0) + 1
    data = {
        "token": token,
        "classes": list(table.about["classes"]),
        "images": [
            {
                "id": row["id"],
                "key": export.cell(row["key"]),
                "shown": text.shortened(row["key"], 200),
                "predicted": text.shortened(row["predicted_class"] or "nothing"),
                "cluster": row["cluster"] if row["cluster"] and alike[row["cluster"]] > 1 else None,
                **_picture(shown.by_id[row["id"]]),
            }
            for row in rows
        ],
    }
    return render_page(
        "gradosr.labels/label.html",
        ["gradosr.labels/label.css"],
        ["naming.js", "gradosr.labels/label.js"],
        number=len(rows),
        results=table.folder.uri,
        command=f"gradosr label {shlex.quote(table.folder.uri)} --import labels.csv",
        data=embedded(data),
    )


def _picture(picture: Picture) -> dict[str, str]:
    if picture.larger is None:
        return {"missing": REASONS.get(picture.kind or "", "no picture")}
    return {"picture": f"data:image/jpeg;base64,{base64.b64encode(picture.larger).decode()}"}
