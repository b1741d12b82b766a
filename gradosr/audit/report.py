"""index.html: an audit.json and its pictures as one file that needs neither network nor server.

A content security policy allows only the style sheet and the script in the page, by their hashes; no attribute carries
style or script. Every value passes through jinja2's autoescape, and every text from an archive through `foreign` as
well. The script adds sorting and filters; without it, everything is shown.
"""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradosr.audit import charts, listing, night_words, text, words
from gradosr.audit.pictures import REASONS, Picture, Pictures
from gradosr.audit.proportions import wilson
from gradosr.audit.steps import steps

_RATES = (
    ("by_prefix", "By prefix", "Prefix"),
    ("by_predicted_class", "By predicted class", "Predicted class"),
    ("by_shard", "By shard", "Shard"),
)
_ENOUGH = 12
"""Rows of a table shown before a button reveals the rest; with the script off, all rows are shown."""
_ENOUGH_ROWS = 12
"""Rows of the table of images shown before."""
_FEW, _AT_ONCE = 3, 4
"""Notes, and clusters, shown before the others are opened."""


def write(document: Mapping[str, Any], pictures: Pictures, out: Path) -> Path:
    """Write OUT/index.html from an audit.json and the pictures of its rows (`pictures.rows_of`); return its path."""
    path = out / "index.html"
    partial = out / ".index.html.new"
    partial.write_text(render(document, pictures), encoding="utf-8")
    return partial.replace(path)


def render(document: Mapping[str, Any], pictures: Pictures) -> str:
    """Render the page of one audit."""
    rows, groups = listing.rows_of(document), listing.groups_of(document)
    uri = document["results"]["uri"]
    return render_page(
        "page.html",
        ["audit.css"],
        ["naming.js", "page.js", "audit.js"],
        audit=document,
        words=words,
        steps=steps(document),
        groups=groups,
        look_alikes=listing.look_alikes_of(document),
        rows=rows,
        labelled=any(row["label"] is not None for row in rows),
        why=any(row["why"] for row in rows),
        row_classes=sorted({row["predicted_class"] for row in rows if row["predicted_class"]}),
        score_chart=_score_chart(document) if document["images"] else None,
        p_value_chart=_p_value_chart(document) if document["images"] else None,
        day_chart=_day_chart(document),
        map_chart=_map_chart(document, groups),
        rates=[_rate_table(document[name], document, *titles) for name, *titles in _RATES if document[name]],
        headline_chart=_headline_chart(document),
        missing=[(text.count(number), REASONS[kind]) for kind, number in pictures.missing.items()],
        bad=[(status, number) for status, number in document["statuses"].items() if status != "ok" and number],
        fingerprint=json.dumps(document["results"]["fingerprint"], indent=2, sort_keys=True),
        enough=_ENOUGH,
        enough_rows=_ENOUGH_ROWS,
        few=_FEW,
        at_once=_AT_ONCE,
        picture=lambda row: tile(pictures.by_id.get(row["id"]), _alt(row), row["id"]),
        known_picture=lambda one: _known_picture(pictures, one),
        import_command=f"gradosr label {shlex.quote(uri)} --import labels.csv",
        data=embedded(listing.data(document, rows, pictures)),
    )


def _alt(row: Mapping[str, Any]) -> str:
    return f"predicted {text.shortened(row['predicted_class'] or 'nothing', 60)}"


def render_nights(output: str, nights: Sequence[Mapping[str, Any]]) -> str:
    """Render the page of a folder's screenings, newest first.

    `nights` are the contents of screening.json, oldest first.
    """
    rows = [_night(night) for night in nights]
    images, unknown = (sum(row[name] for row in rows) for name in ("images", "unknown"))
    overall, measured = unknown / max(1, images), [row for row in rows if row["images"]]
    style = _resource("page.css")
    return _template("nights.html").render(
        policy=_policy(style, "'none'"),
        style=Markup(style),  # noqa: S704 - our own file
        output=output,
        headline=night_words.headline(nights[-1]),
        watched=night_words.watched(nights[-1]),
        nights=rows[::-1],
        overall=overall,
        chart=charts.over_time(measured, overall, "Share of the new images over the threshold, by night")
        if measured
        else None,
    )


def render_page(name: str, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """Render a page, also of another package, whose template, style sheets and scripts are named PACKAGE/FILE."""
    style, code = ("".join(map(_resource, names)) for names in (("page.css", *styles), scripts))
    return _template(name).render(
        policy=_policy(style, f"'{_hash(code)}'" if scripts else "'none'"),
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(code),  # noqa: S704
        **values,
    )


def embedded(data: Any) -> Markup:
    """Return JSON that no parser of HTML takes for the end of the script element that it stands in."""
    body = json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(body)  # noqa: S704 - no character of HTML is left in it


def _night(night: Mapping[str, Any]) -> dict[str, Any]:
    counts = night["counts"]
    low, high = wilson(counts["unknown"], counts["images"])
    return {
        "name": night["night"],
        **counts,
        "rate": counts["unknown"] / counts["images"] if counts["images"] else None,
        "low": low,
        "high": high,
        "bad": counts["rows"] - counts["images"],
        "audited": counts["rows"] > 0,
        "new_shards": night["new_shards"],
        "missing": len(night["missing"]),
        "share": night.get("unknown_share"),
        "tripped": [f"{one['gate']}: {one['why']}" for one in night["verdicts"] if one["tripped"]],
    }


def _policy(style: str, scripts: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src {scripts}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        foreign=text.foreign,
        ending=text.ending,
        count=text.count,
        percent=text.percent,
        points=text.points,
        score=text.score,
        p_value=text.p_value,
        neutral=text.neutral,
        shortened=text.shortened,
    )
    environment.globals.update(interval=text.interval, plural=text.plural)
    return environment.get_template(name)


@cache
def _resource(name: str) -> str:
    """Return a file of this package, or PACKAGE/FILE of another one."""
    package, _, file = name.rpartition("/")
    return (files(package or "gradosr.audit") / file).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def tile(picture: Picture | None, alt: str, name: str | None = None) -> Markup:
    """Return the markup of a thumbnail, or of a placeholder with its reason; `name` is what a script finds it by."""
    own = Markup(' data-picture="{}"').format(name) if name else Markup("")
    if picture is None or picture.thumbnail is None:
        kind = REASONS.get(picture.kind or "", "") if picture else REASONS["not_fetched"]
        why = text.shortened(picture.reason or "", 300) if picture else ""
        return Markup('<span class="nothing"{2} role="img" aria-label="no picture: {0}" title="{1}">{0}</span>').format(
            kind, why, own
        )
    data = base64.b64encode(picture.thumbnail).decode()
    return Markup(
        '<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}"{} decoding="async" loading="lazy">'
    ).format(data, picture.width, picture.height, alt, own)


def _known_picture(pictures: Pictures, known: Mapping[str, Any]) -> Markup:
    jpeg = getattr(pictures, "known", {}).get(known["id"])
    if not jpeg:
        return Markup('<span class="nothing">no picture kept</span>')
    data = base64.b64encode(jpeg).decode()
    return Markup('<img src="data:image/jpeg;base64,{}" width="64" height="64" alt="known: {}" loading="lazy">').format(
        data, text.shortened(known["class"], 60)
    )


def _map_chart(document: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> Markup | None:
    atlas = document.get("map")
    if not atlas or not atlas["ids"]:
        return None
    colour_of = {group["id"]: group["colour"] for group in groups}
    colours = [colour_of.get(name, "none") for name in atlas["groups"]]
    return charts.points(atlas["x"], atlas["y"], atlas["ids"], colours, "Map of the images over the threshold")


def _headline_chart(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Draw the interval of the prevalence on a scale of its own; None if there is no estimate."""
    prevalence = document["prevalence"]
    if prevalence["estimate"] is None:
        return None
    rate = {"high": prevalence["high"]}
    top = charts.scale([rate])
    shape = charts.span(prevalence["estimate"], prevalence["low"], prevalence["high"], top)
    return {"shape": shape, "top": text.percent(top)}


def _score_chart(document: Mapping[str, Any]) -> dict[str, Any]:
    scores = document["histograms"]["unknown_score"]
    archive = charts.shares(scores["archive"])
    known = charts.shares(scores["calibration"]) if scores["calibration"] else None
    title = "Histogram of the unknown score: images of this archive" + (", and held-out known images" if known else "")
    chart = charts.histogram(scores["edges"], archive, known, None, title)
    table = [
        (text.score(scores["edges"][i]), text.percent(share), text.percent(known[i]) if known else None)
        for i, share in enumerate(archive)
    ]
    return {"shape": chart, "known": known is not None, "table": table}


def _p_value_chart(document: Mapping[str, Any]) -> dict[str, Any]:
    p_values = document["histograms"]["p_value"]
    archive = charts.shares(p_values["archive"])
    flat = 1 / max(1, len(archive))
    chart = charts.histogram(p_values["edges"], archive, None, flat, "Histogram of the p-values of this archive")
    table = [(f"{p_values['edges'][i]:.3g}", text.percent(share), None) for i, share in enumerate(archive)]
    return {"shape": chart, "table": table}


def _day_chart(document: Mapping[str, Any]) -> Markup | None:
    days = document["by_day"]
    if len(days) < 2:  # a single day is the whole archive
        return None
    title = f"Share over the threshold by day, {days[0]['name']} to {days[-1]['name']}"
    return charts.over_time(days, document["unknown_rate"] or 0.0, text.neutral(title))


def _rate_table(
    rates: Sequence[Mapping[str, Any]], document: Mapping[str, Any], title: str, column: str
) -> dict[str, Any]:
    top = charts.scale([dict(rate) for rate in rates])
    rows = [
        {**rate, "shape": charts.span(rate["rate"], rate["low"], rate["high"], top, document["unknown_rate"])}
        for rate in rates
    ]
    return {"title": title, "column": column, "rows": rows, "top": text.percent(top)}
