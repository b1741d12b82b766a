"""An audit.json as an audit makes it, of a true little archive with what archives really hold; names included."""

import base64
import io
import json
import math
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hostile import bomb_png, tar
from PIL import Image, ImageDraw, ImageFilter
from pyarrow import parquet

from gradosr.audit.export import COLUMNS
from gradosr.audit.rows import id_of
from gradosr.config import TarInput

HOSTILE = (
    "<script>alert(1)</script>.jpg",
    "\"><img src=x onerror=alert(1)> ' `.jpg",
    "bidi \u202egpj.exe\u2066 and \x07\x1b[31m bell.jpg",
    '=HYPERLINK("http://evil.example","x").jpg',
    "a" * 3000 + ".jpg",
    "zalgo" + "\u0335\u0336\u0337" * 60 + ".jpg",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627.jpg",
    "{{ 7 * 7 }} {% raw %} </style></script><!--.jpg",
)
CLASSES = ["airplane", "automobile", "deer", "frog", "horse", "truck"]
KINDS = ("digits", "rings", "stripes")


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(2)"><script>alert(3)</script></svg>'


def described(jpeg: bytes) -> bytes:
    """A JPEG whose EXIF fields hold markup."""
    body, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = exif[0x9286] = "<script>alert(4)</script><img src=x onerror=alert(5)>"
    Image.open(io.BytesIO(jpeg)).save(body, "JPEG", exif=exif, comment=b"<script>alert(6)</script>")
    return body.getvalue()


def drawing(kind: str, seed: int, side: int = 96) -> bytes:
    """A JPEG of something that a classifier of animals and vehicles has not seen."""
    rng = np.random.default_rng(seed)
    width, height = side + int(rng.integers(0, side // 2)), side
    ground, ink = (tuple(int(v) for v in rng.integers(a, b, 3)) for a, b in ((170, 250), (10, 120)))
    image = Image.new("RGB", (width, height), ground)
    draw = ImageDraw.Draw(image)
    x, y, r = rng.integers(20, width - 20), rng.integers(25, height - 25), rng.integers(16, 30)
    if kind == "digits":
        draw.text((width * 0.3, height * 0.1), str(seed % 10), fill=ink, font_size=height * 0.7)
    elif kind == "rings":
        for i in range(3):
            draw.ellipse((x - r + 5 * i, y - r + 5 * i, x + r - 5 * i, y + r - 5 * i), outline=ink, width=2)
    else:
        for i in range(0, width, 9):
            draw.line((i, 0, i + r, height), fill=ink, width=3)
    body = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(0.6)).save(body, "JPEG", quality=88)
    return body.getvalue()


def wilson(unknown: int, images: int) -> tuple[float, float]:
    z, p, n = 1.96, unknown / images, images
    middle, half = (p + z * z / 2 / n), z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def rate(name: str, unknown: int, images: int) -> dict[str, Any]:
    low, high = wilson(unknown, images)
    return {"name": name, "images": images, "unknown": unknown, "rate": unknown / images, "low": low, "high": high}


class Archive:
    """Four tars below a folder, a document about them, and what lies beside it."""

    def __init__(self, folder: Path) -> None:
        self.source = TarInput(uri=str(folder / "archive"))
        self.rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (*KINDS, "hostile")}
        (folder / "archive" / "cam-a").mkdir(parents=True)
        for number in range(4):
            shard = f"cam-{'ab'[number % 2]}/2026-1{number // 2}-0{number + 1}.tar"
            (folder / "archive" / shard).parent.mkdir(exist_ok=True)
            members = [
                (f"{kind}/{kind}-{number}{i:02}.jpg", drawing(kind, 100 * number + i))
                for kind in KINDS
                for i in range(8)
            ]
            for name, _ in members:
                self._add(name.partition("/")[0], shard, name)
            if number == 0:
                for i, name in enumerate(HOSTILE):
                    members.append((name, drawing("digits", 1000 + i)))
                    self._add("hostile", shard, name)
                members += [("bomb.png", bomb_png()), ("broken.jpg", b"\xff\xd8\xff not really")]
                members += [("svg.jpg", SVG), ("exif.jpg", described(drawing("rings", 2000)))]
                for name in ("bomb.png", "broken.jpg", "svg.jpg", "exif.jpg"):
                    self._add("hostile", shard, name)
            if number < 3:  # the last shard was deleted after it was scored
                (folder / "archive" / shard).write_bytes(tar(members))
        self.document = document(self.rows, str(folder))
        self.out = folder / "report"
        self.out.mkdir()
        flagged = self.document["highest"]
        table = [{**row, "confidence": 0.5, "group": None} for row in flagged]
        parquet.write_table(pa.Table.from_pylist(table).select(list(COLUMNS)), self.out / "flagged.parquet")
        (self.out / "audit.json").write_text(json.dumps(self.document))

    def _add(self, kind: str, shard: str, name: str) -> None:
        key, place = f"{shard}#{name}", sum(map(len, self.rows.values()))
        score = 9.5 - 0.05 * place
        self.rows[kind].append(
            {
                "id": id_of(key),
                "key": key,
                "shard": shard,
                "row": place,
                "label": kind if kind != "hostile" else name,
                "predicted_class": CLASSES[place % 6],
                "unknown_score": score,
                "p_value": round(2e-5 * 1.06**place, 7),
                "width": None,
                "height": None,
            }
        )


def histograms(rng: np.random.Generator) -> dict[str, Any]:
    known, unknown = rng.normal(0, 1, 20_000), rng.normal(3.4, 1.1, 4_000)
    edges = np.linspace(-4, 8, 49)
    archive = np.concatenate([rng.normal(0.15, 1.05, 80_000), unknown])
    p_values = np.concatenate([rng.uniform(0, 1, 80_000), rng.beta(0.3, 9, 4_000)])
    p_edges = np.linspace(0, 1, 26)
    return {
        "unknown_score": {
            "edges": edges.tolist(),
            "archive": np.histogram(archive, edges)[0].tolist(),
            "calibration": np.histogram(known, edges)[0].tolist(),
        },
        "p_value": {"edges": p_edges.tolist(), "archive": np.histogram(p_values, p_edges)[0].tolist()},
    }


def atlas(rows: dict[str, list[dict[str, Any]]], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows, and as many images more that are listed nowhere."""
    cluster_of = {row["id"]: group["id"] for group in groups for row in group["typical"]}
    keys = [row["key"] for kind in rows.values() for row in kind]
    keys += [f"elsewhere.tar#{i}.jpg" for i in range(len(keys))]
    rng = np.random.default_rng(1)
    places = rng.uniform(0, 1, (len(keys), 2)).round(4)
    return {
        "x": places[:, 0].tolist(), "y": (0.7 * places[:, 1]).round(4).tolist(), "ids": [id_of(key) for key in keys],
        "keys": keys, "groups": [cluster_of.get(id_of(key)) for key in keys],
        "predicted": [i % 6 for i in range(len(keys))], "method": "made up",
    }  # fmt: skip


def explained(number: int) -> dict[str, Any]:
    """Why an image has its score."""
    values = np.zeros((16, 16), np.uint8)
    values[number % 16, 3:9] = 255
    parts = [("max_logit", 1.2, 0.991), ("gradients", -0.2, 0.3), ("beyond", 0.0, 0.5)]
    return {
        "unknown_score": 9.5, "p_value": 2e-5, "is_unknown": True, "predicted_class": "frog", "confidence": 0.4,
        "parts": [{"name": name, "value": value, "known_below": below} for name, value, below in parts],
        "layers": [{"name": "predicted/<b>fc</b>.weight", "value": 3.1, "known_below": 0.999}],
        "heat_map": {"side": 16, "values": base64.b64encode(values.tobytes()).decode(), "of": ["max_logit", "beyond"],
                     "without": ["gradients"], "box": [0.1, 0.0, 0.9, 1.0]},
        "said": [f"Reason {HOSTILE[0]}."], "short": "unsure of any class",
    }  # fmt: skip


def document(rows: dict[str, list[dict[str, Any]]], folder: str) -> dict[str, Any]:
    """Check the contract between facts and page."""
    rng = np.random.default_rng(0)
    groups = [
        {
            "id": f"g-{id_of(kind)[:8]}",
            "size": size,
            "expected_false_alarms": size * share,
            "false_alarm_share": share,
            "nearest_class": CLASSES[i],
            "labels": [{"name": kind, "images": size // 2}, {"name": HOSTILE[0], "images": size // 10}],
            "labelled": size,
            "nearest_known": ["k0", "k1"],
            "days": {"first": "2026-08-01", "last": "2026-10-29"},
            "prefixes": [{"name": f"cam-{x}/", "images": size // 2} for x in "ab"],
            "shards": [{"name": row["shard"], "images": 8} for row in rows[kind][::8]],
            "typical": rows[kind][:16],
            "borderline": rows[kind][16:26],
        }
        for i, (kind, size, share) in enumerate(zip(KINDS, (1834, 702, 96), (0.03, 0.11, 0.41), strict=True))
    ]
    groups[1]["nearest_class"] = "<b>deer</b>"
    highest = sorted((row for kind in rows.values() for row in kind), key=lambda row: -row["unknown_score"])[:100]
    shards = [
        rate(f"cam-{'ab'[i % 2]}/2026-{1 + i % 12:02}-{1 + i % 28:02}.tar", int(rng.integers(20, 160)), 1200)
        for i in range(60)
    ]
    days = [date(2026, 8, 1) + timedelta(days=i) for i in range(90)]
    fingerprint = {"bundle": "5f" * 32, "input": {"kind": "tar", "uri": f"{folder}/archive"}, "precision": "float32"}
    return {
        "schema": 1,
        "gradosr": "0.1.0",
        "made": "2026-11-22T02:41:07Z",
        "results": {
            "uri": "s3://results/archive-2026/",
            "finished": True,
            "parts": 72,
            "input": fingerprint["input"],
            "bundle": "5f" * 32,
            "fingerprint": fingerprint,
        },
        "notes": ["by_shard: 60 of 72 shards are listed, the worst first"],
        "rows": 84_412,
        "images": 84_000,
        "statuses": {"ok": 84_000, "truncated": 300, "not_an_image": 110, "too_large": 2},
        "classes": CLASSES,
        "false_alarm_rate": 0.05,
        "unknown": 7_310,
        "unknown_rate": 7_310 / 84_000,
        "calibration": {"images": 20_000, "kind": "pooled"},
        "labels": {
            "labelled": 260,
            "drawn": 240,
            "needed": 20,
            "unknown_share": {"estimate": 0.049, "low": 0.031, "high": 0.076, "labels": 240, "labels_to_halve": 730},
            "precision": {"estimate": 0.54, "low": 0.45, "high": 0.63, "labels": 120, "labels_to_halve": 365},
        },
        "prevalence": {
            "estimate": 0.0472,
            "low": 0.0441,
            "high": 0.0506,
            "lower_bound": 0.0446,
            "confidence": 0.95,
            "method": "excess of small p-values over the uniform, at a tuned threshold",
            "tuning": "lambda 0.2, by half-split",
            "reason": None,
        },
        "flags": {
            "level": 0.1,
            "count": 2_146,
            "expected_false": 214.6,
            "smallest_p_value": 1 / 20_001,
            "calibration_images": 20_000,
            "reason": None,
        },
        "histograms": histograms(rng),
        "by_prefix": [rate("cam-a/", 5100, 42_000), rate("cam-b/<i>", 2100, 41_000), rate("x/" * 400, 110, 1000)],
        "by_predicted_class": [
            rate(name, int(n), 14_000) for name, n in zip(CLASSES, (2900, 1500, 1100, 900, 560, 350), strict=True)
        ],
        "by_shard": sorted(shards, key=lambda one: -one["low"]),
        "by_day": [
            rate(f"{day:%Y-%m-%d}", int(40 + (i > 60) * 60 + rng.integers(0, 30)), 930) for i, day in enumerate(days)
        ],
        "dates": {"keys": 83_700, "shards": 0, "none": 300},
        "groups": {
            "reason": None,
            "considered": 7_310,
            "clustered": 2_632,
            "left_over": 4_678,
            "items": groups,
            "look_alikes": [
                {
                    "class": "deer",
                    "images": 412,
                    "expected_false_alarms": 60.0,
                    "false_alarm_share": 0.15,
                    "typical": rows["hostile"][:4],
                    "nearest_known": ["k1"],
                }
            ],
        },
        "list": "flagged.parquet",
        "known_images": {
            "k0": {"class": "frog", "key": None, "picture": True},
            "k1": {"class": HOSTILE[1], "key": HOSTILE[0], "picture": True},
        },
        "nearest_known": {highest[0]["id"]: ["k0", "k1"]},
        "map": atlas(rows, groups),
        "explained": {"bundle": "bundle", "items": {row["id"]: explained(i) for i, row in enumerate(highest[:40])}},
        "highest": highest,
        "quarantined": [{"shard": "cam-a/2026-04-02.tar", "reason": "not a tar archive: <b>empty</b> file"}],
        "bad_images": [
            {"key": f"cam-a/2026-01-01.tar#{i}.jpg", "status": "truncated", "error": "image file is truncated"}
            for i in range(40)
        ]
        + [{"key": HOSTILE[0], "status": "not_an_image", "error": HOSTILE[1]}],
        "baseline": {
            "uri": "s3://results/archive-2025/",
            "unknown_rate": 0.061,
            "unknown_rate_change": {
                "difference": 7_310 / 84_000 - 0.061,
                "low": 0.0228,
                "high": 0.0292,
                "p_value": 1e-12,
                "adjusted_p_value": 7e-12,
            },
            "predicted_class_change": [
                {"name": name, "before": 1 / 6, "now": 1 / 6 + d, "p_value": p, "adjusted_p_value": min(1.0, 7 * p)}
                for name, d, p in zip(
                    CLASSES, (0.04, 0.01, 0, -0.01, -0.02, -0.02), (1e-9, 0.01, 0.9, 0.02, 1e-3, 1e-3), strict=True
                )
            ],
            "appeared": 12_400,
            "vanished": 31,
        },
    }
