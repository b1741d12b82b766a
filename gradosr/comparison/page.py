"""The page of a comparison: one file that needs neither network nor server, in the style of an audit's."""

from collections.abc import Mapping
from typing import Any

from gradosr.audit import report, text
from gradosr.audit.pictures import REASONS, Pictures
from gradosr.comparison import words
from gradosr.store import Store


def write(store: Store, uri: str, document: Mapping[str, Any], pictures: Pictures | None) -> None:
    """Write the page to a URI; without `pictures`, images are told by their keys alone."""
    store.write(uri, render(document, pictures).encode())


def render(document: Mapping[str, Any], pictures: Pictures | None) -> str:
    """Render the page."""
    missing = pictures.missing if pictures else {}
    return report.render_page(
        "gradosr.comparison/comparison.html",
        [],
        ["page.js"],
        found=document,
        words=words,
        classes=[one for one in document["by_class"] if one["to_unknown"] or one["to_known"]],
        moved=[
            ("to-unknown", "Under the threshold before, over it after", document["to_unknown"]),
            ("to-known", "Over the threshold before, under it after", document["to_known"]),
        ],
        pictured=pictures is not None,
        picture=lambda row: report.tile(
            pictures.by_id.get(row["id"]) if pictures else None,
            f"predicted {text.shortened(row['predicted_class'] or 'nothing', 60)}",
        ),
        missing=[(text.count(number), REASONS[kind]) for kind, number in missing.items()],
    )
