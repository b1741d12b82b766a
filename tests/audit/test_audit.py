"""An audit's figures where the truth is known, and what it makes of archives that are hostile, unfinished or old."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gradosr.jobs.cli import run
from made_runs import CLASSES, RATE, bad, calibration, rows, write_run
from tiny import local_job, run_here, write_archive

from gradosr.audit import audit, words
from gradosr.audit.false_alarms import FalseAlarms
from gradosr.audit.flags import certified
from gradosr.audit.histograms import score_histogram
from gradosr.audit.p_values import PValues
from gradosr.audit.places import Days, Prefixes, folder_of
from gradosr.audit.prevalence import share_of_unknown
from gradosr.audit.proportions import difference, holm, p_of_difference, wilson
from gradosr.audit.rows import SHOWN_LETTERS, key_hash
from gradosr.audit.tally import ScoreCells
from gradosr.config import AuditSettings
from gradosr.errors import ConfigError, FingerprintMismatch, InputError
from gradosr.store import Store

rng_of = np.random.default_rng


def facts(uri: str, out: Path | None = None, baseline: str | None = None, **settings: Any) -> dict[str, Any]:
    document = audit(Store(), uri, AuditSettings(**settings), baseline, out)
    return json.loads(json.dumps(document, allow_nan=False))  # as a reader of audit.json gets it


def drawn(seed: int, n: int, known: int, unknown: int, shift: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Counts by p-value of an archive, the ranks of its images (known ones first), and n + 1."""
    rng = rng_of(seed)
    scores = np.sort(rng.normal(size=n))
    archive = np.concatenate([rng.normal(size=known), rng.normal(shift, 0.7, unknown)])
    ranks = n - np.searchsorted(scores, archive, side="left")
    return np.bincount(ranks, minlength=n + 1), ranks, n + 1


# --- prevalence


@pytest.mark.slow
@pytest.mark.parametrize("shift", [4.0, 1.3], ids=["far", "near"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5])
def test_the_interval_covers_the_true_share(shift: float, share: float) -> None:
    found = [
        share_of_unknown(PValues.pooled(drawn(seed, 1500, 5000 - int(5000 * share), int(5000 * share), shift)[0]), 0.95)
        for seed in range(40)
    ]
    assert sum(one.low <= share <= one.high for one in found) >= 35  # of 40, at 95 %
    assert sum(one.lower_bound <= share for one in found) >= 35
    assert all(one.low <= one.estimate <= one.high for one in found)
    if shift == 4.0:
        assert np.mean([one.high - one.low for one in found]) <= 0.1


def test_the_interval_knows_of_a_small_calibration_and_of_a_small_archive() -> None:
    def width(n: int, images: int) -> float:
        counts, *_ = drawn(1, n, images * 4 // 5, images // 5, 4.0)
        found = share_of_unknown(PValues.pooled(counts), 0.95)
        return found.high - found.low

    assert width(200, 100_000) > 3 * width(20_000, 100_000)
    assert width(20_000, 500) > 3 * width(20_000, 100_000)


def test_the_same_counts_give_the_same_figures() -> None:
    counts, *_ = drawn(3, 500, 900, 100, 2.0)
    assert share_of_unknown(PValues.pooled(counts), 0.9) == share_of_unknown(PValues.pooled(counts), 0.9)


def test_no_share_of_too_few() -> None:
    assert share_of_unknown(PValues.pooled(np.array([3] * 20)), 0.95).reason == (
        "19 calibration images are too few for a share; fit with at least 100"
    )
    assert share_of_unknown(PValues.pooled(np.zeros(1000, int)), 0.95).reason == "no image has a score"


def test_an_archive_of_unknown_images_alone_and_of_very_known_ones() -> None:
    counts = np.zeros(1000, int)
    counts[0] = 5000
    assert share_of_unknown(PValues.pooled(counts), 0.95).low > 0.99
    counts = np.zeros(1000, int)
    counts[-1] = 5000
    found = share_of_unknown(PValues.pooled(counts), 0.95)
    assert (found.estimate, found.low, found.high, found.lower_bound) == (0, 0, 0, 0)


# --- flags


def test_flags_are_those_of_benjamini_and_hochberg_on_sorted_rows() -> None:
    for seed in range(20):
        counts, ranks, n_plus_1 = drawn(seed, 300, 400, 80, 3.0)
        p_values = np.sort((ranks + 1) / n_plus_1)
        passing = np.flatnonzero(p_values <= 0.1 * np.arange(1, len(ranks) + 1) / len(ranks))
        expected = 0 if not len(passing) else int((p_values <= p_values[passing[-1]]).sum())
        found = certified(PValues.pooled(counts), 0.1)
        assert found.count == expected == (((ranks + 1) / n_plus_1) <= found.cut).sum()


def test_the_share_of_false_flags_keeps_its_level() -> None:
    false, share = [], []
    for seed in range(60):
        counts, ranks, n_plus_1 = drawn(seed, 1500, 4000, 1000, 4.0)
        flagged = (ranks + 1) / n_plus_1 <= certified(PValues.pooled(counts), 0.1).cut
        false.append(flagged[:4000].sum() / max(1, flagged.sum()))
        share.append(flagged[4000:].mean())
    assert np.mean(false) <= 0.12
    assert np.mean(share) >= 0.9


def test_what_the_calibration_cannot_certify_is_said_with_the_number_that_could() -> None:
    counts, *_ = drawn(0, 100, 99_900, 100, 6.0)
    found = certified(PValues.pooled(counts), 0.1)
    assert found.count == 0
    assert found.smallest_p_value == 1 / 101
    assert "at no score are there 10 times as many images as known ones alone would give" in str(found.reason)
    enough = int(str(found.reason).rpartition(", and ")[2].split()[0].replace(",", ""))
    counts[[0, 50]] += np.array([1, -1]) * (enough - 1 - counts[0])  # with as many images in all
    assert certified(PValues.pooled(counts), 0.1).count == 0
    counts[[0, 50]] += 1, -1
    assert certified(PValues.pooled(counts), 0.1).count == enough


def test_the_expected_number_of_false_flags() -> None:
    counts = np.zeros(1000, int)
    counts[0], counts[500] = 100, 900
    found = certified(PValues.pooled(counts), 0.1)
    assert (found.count, found.expected_false, found.reason) == (100, 10, None)


# --- proportions


def test_intervals_and_tests_of_shares() -> None:
    assert wilson(0, 0) == (0, 1)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert difference(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)  # his table II, method 10
    assert p_of_difference(56, 70, 48, 80) == pytest.approx(0.008045, abs=1e-5)  # z = 2.650
    assert p_of_difference(0, 10, 0, 10) == p_of_difference(1, 1, 0, 0) == 1
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


# --- counting


def test_score_cells_keep_order_and_counts_of_any_floats() -> None:
    cells = ScoreCells()
    scores = np.array([-1e30, -5, -1e-20, 0, 1e-20, 3, 3, 1e30], np.float32)
    cells.add(scores)
    middles, counts = cells.counted()
    assert counts.tolist() == [1, 1, 1, 1, 1, 2, 1]
    assert middles[[0, 1, 5, 6]] == pytest.approx([-1e30, -5, 3, 1e30], rel=1e-3)
    assert (np.diff(middles) > 0).all()


def test_histograms_share_their_edges_and_lose_nothing(tmp_path: Path) -> None:
    known = calibration()
    scores = np.concatenate([rng_of(0).normal(size=5000), [-1e9, 1e9]])
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", scores, known)}, known)
    found = facts(uri)["histograms"]
    score = found["unknown_score"]
    assert len(score["edges"]) == len(score["archive"]) + 1 == len(score["calibration"]) + 1 <= 130
    assert (sum(score["archive"]), sum(score["calibration"])) == (5002, 999)
    assert sorted(score["edges"]) == score["edges"]
    assert (score["edges"][0], score["edges"][-1]) == pytest.approx((-1e9, 1e9), rel=1e-3)
    assert sum(found["p_value"]["archive"]) == 5002
    assert score_histogram(ScoreCells(), None) == {"edges": [], "archive": [], "calibration": None}


@pytest.mark.parametrize(
    ("key", "day"),
    [
        ("2026/11/22/a.jpg", "2026-11-22"),
        ("x/2026-11-22.jpg", "2026-11-22"),
        ("IMG_20261122_101112.jpg", "2026-11-22"),
        ("dt=2026-11-22/a.jpg", "2026-11-22"),
        ("year=2026/month=11/day=22/a.jpg", "2026-11-22"),
        ("cam/2026-02-31/a.jpg", None),
        ("120261122.jpg", None),
        ("2026/13/01.jpg", None),
        ("a.jpg", None),
    ],
)
def test_days_are_read_from_keys(key: str, day: str | None) -> None:
    import pyarrow as pa

    for shard in (None, "shard.tar", f"{key}.tar"):
        days = Days()
        names = [key] if shard is None else [f"{shard}#{key}"]
        days.add(pa.chunked_array([names]), shard, np.array([True]))
        assert days.counts() == ([(day, 1, 1)] if day else [])
        assert days.undated == (day is None)


def test_keys_without_a_date_count_by_the_day_their_shard_was_modified() -> None:
    import pyarrow as pa

    days, unknown = Days(), np.array([True, False, True])
    keys = pa.chunked_array([["a.tar#2026-11-22.jpg", "a.tar#2026-02-31.jpg", "a.tar#x.jpg"]])
    days.add(keys, "a.tar", unknown, modified=0)
    assert days.counts() == [("1970-01-01", 2, 1), ("2026-11-22", 1, 1)]
    for beyond in (None, 2**62, -(2**62)):  # not on record, or no time of a calendar
        days.add(keys, "a.tar", unknown, modified=beyond)
    assert (days.from_keys, days.from_shards, days.undated) == (4, 2, 6)


def test_the_page_tells_what_its_days_are_of(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    os.utime(tmp_path / "archive" / "00000.tar", (1_795_305_600, 1_795_305_600))  # 2026-11-22
    os.utime(tmp_path / "archive" / "00001.tar", (1_795_392_000, 1_795_392_000))
    run_here(local_job(tmp_path))
    found = facts(f"{tmp_path}/results", out=tmp_path / "out")
    assert [(one["name"], one["images"]) for one in found["by_day"]] == [("2026-11-22", 6), ("2026-11-23", 6)]
    assert found["dates"] == {"keys": 0, "shards": 12, "none": 0}
    page = (tmp_path / "out" / "index.html").read_text()
    assert "The keys carry no dates: images count by the day (UTC) on which their shard was last modified." in page
    found["dates"] = {"keys": 5, "shards": 7, "none": 0}
    assert "in the key, of 5\u00a0images; 7\u00a0images without one count by the day" in words.days(found)


def test_prefixes_are_bounded_in_whatever_order_they_come() -> None:
    import pyarrow as pa

    keys = np.array([f"{i % 7}/{i % 300}/{i}/x.jpg" for i in range(60_000)], dtype=object)
    found = []
    for order in (np.arange(len(keys)), rng_of(0).permutation(len(keys))):
        prefixes = Prefixes("images")
        for chunk in np.array_split(keys[order], 50):
            prefixes.add(pa.chunked_array([chunk]), "group-000001", np.ones(len(chunk), bool))
        found.append((prefixes.depth, sorted(prefixes.counts())))
    assert found[0] == found[1]
    assert found[0][0] == 2
    assert sum(images for _, images, _ in found[0][1]) == 60_000
    assert folder_of("images", "group-000001", "a.jpg") == "/"
    assert folder_of("tar", "x/a.tar", "x/a.tar#cats/1.jpg") == "x/cats"


def test_rates_by_place_day_class_and_shard(tmp_path: Path) -> None:
    known = calibration()
    calm = rows("2026/11/21/a.tar", [0.0] * 90, known)
    odd = rows("2026/11/22/b.tar", [9.0] * 30, known, index=[2] * 30)
    found = facts(write_run(tmp_path / "run", {"a": calm, "b": odd}, known))
    assert (found["rows"], found["images"], found["unknown"], found["unknown_rate"]) == (120, 120, 30, 0.25)
    assert [(one["name"], one["images"], one["unknown"]) for one in found["by_shard"]] == [
        ("2026/11/22/b.tar", 30, 30),
        ("2026/11/21/a.tar", 90, 0),
    ]
    assert [one["name"] for one in found["by_prefix"]] == ["2026/11/22", "2026/11/21"]
    assert [(one["name"], one["rate"]) for one in found["by_day"]] == [("2026-11-21", 0), ("2026-11-22", 1)]
    assert found["by_predicted_class"][0]["name"] == "ship"
    assert found["by_predicted_class"][0]["low"] < 0.5 == found["by_predicted_class"][0]["rate"]


# --- lists, samples and groups


def grouped(folder: Path, parts: int = 3, kinds: int = 2, extra: int = 0) -> str:
    """Unknown images of some kinds in a space of 24 features, with few false alarms among them."""
    known, rng = calibration(4999), rng_of(7)
    made = {}
    for part in range(parts):
        kind = np.arange(60 + extra) % kinds
        features = np.eye(24)[kind] * 6 + rng_of(part).normal(size=(len(kind), 24)) * 0.3
        stray = rng.normal(size=(200, 24))
        scores = np.concatenate([np.full(len(kind), 6.0) + kind, rng.normal(size=200)])
        every = np.concatenate([features, stray])
        index = [2] * len(kind) + [0] * 200
        made[f"part-{part}"] = rows(f"day/{part}.tar", scores, known, features=every, index=index)
    return write_run(folder, made, known, width=24)


def test_groups_are_found_named_by_content_and_the_same_again(tmp_path: Path) -> None:
    uri = grouped(tmp_path / "run")
    first, again = facts(uri)["groups"], facts(uri)["groups"]
    assert first == again
    assert first["reason"] is None
    classes = [item for item in first["items"] if item["false_alarm_share"] < 0.5]  # others say that they are none
    assert [85 <= item["size"] <= 110 for item in classes] == [True, True]  # false alarms join
    assert first["clustered"] + first["left_over"] == first["considered"]
    for item in classes:
        assert item["nearest_class"] == "ship"
        assert item["false_alarm_share"] < 0.15
        assert item["expected_false_alarms"] == pytest.approx(item["false_alarm_share"] * item["size"])
        assert len({row["unknown_score"] for row in item["typical"]}) == 1  # of one kind
        assert item["prefixes"] == [{"name": "day", "images": item["size"]}]
        assert sum(one["images"] for one in item["shards"]) == item["size"]
    kept = {item["id"] for item in first["items"]}
    grown = {item["id"] for item in facts(grouped(tmp_path / "more", parts=4))["groups"]["items"]}
    assert kept & grown  # the same image may still be the first by its hash


def test_groups_of_a_sample_chosen_by_hash(tmp_path: Path) -> None:
    uri = grouped(tmp_path / "run", parts=4)
    found = facts(uri, group_sample=100)
    assert found["groups"]["considered"] == 100
    assert any("sample" in note for note in found["notes"])
    assert facts(uri, group_sample=100)["groups"] == found["groups"]


def test_no_groups_without_features_and_how_to_get_them(tmp_path: Path) -> None:
    known = calibration()
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", [9.0] * 30, known)}, known)
    assert "features: unknown" in facts(uri)["groups"]["reason"]
    assert facts(uri)["groups"]["items"] == []
    calm = write_run(tmp_path / "calm", {"a": rows("a.tar", [0.0] * 30, known)}, known)
    assert facts(calm)["groups"]["reason"] == "no image is over the threshold"


def test_false_alarms_add_up_to_what_known_images_alone_would_have() -> None:
    counts, ranks, n_plus_1 = drawn(5, 2000, 20_000, 2000, 3.0)
    alarms = FalseAlarms.of(PValues.pooled(counts), 20_000 / 22_000, RATE)
    over = ranks[ranks + 1 <= RATE * n_plus_1]
    expected = alarms((over + 1) / n_plus_1).sum()
    assert expected == pytest.approx(20_000 * RATE, rel=0.1)
    assert (np.diff(alarms.shares) >= 0).all()


def test_the_highest_rows_are_the_same_whatever_part_is_read_first(tmp_path: Path) -> None:
    known = calibration()
    scores = rng_of(1).normal(size=(6, 400)).round(1) + 3  # many ties
    parts = {f"p{i}": rows(f"{i}.tar", scores[i], known) for i in range(6)}
    renamed = {f"p{5 - i}": made for i, made in enumerate(parts.values())}
    one, two = (facts(write_run(tmp_path / name, made, known)) for name, made in (("a", parts), ("b", renamed)))
    assert one["highest"] == two["highest"]
    expected = sorted((row for made in parts.values() for row in made), key=lambda r: (-r["unknown_score"], r["key"]))
    assert [row["key"] for row in one["highest"]] == [row["key"] for row in expected[:100]]
    assert one["highest"][0]["id"] == key_hash(expected[0]["key"]).hex()[:16]


def test_flagged_parquet_holds_the_flagged_rows_in_order(tmp_path: Path) -> None:
    uri = grouped(tmp_path / "run")
    found = facts(uri, tmp_path)
    table = pq.read_table(tmp_path / "flagged.parquet")
    assert table.column_names == [
        *("id", "key", "shard", "row", "label", "predicted_class"),
        *("confidence", "unknown_score", "p_value", "group"),
    ]
    assert len(table) == found["flags"]["count"] > 0
    assert table["shard"].to_pylist() == sorted(table["shard"].to_pylist())
    groups = {item["id"] for item in found["groups"]["items"]}
    assert groups <= set(table["group"].to_pylist())
    assert {path.name for path in tmp_path.iterdir()} == {
        *("run", "audit.json", "flagged.parquet", "index.html"),
        *("flagged.csv", "images", "labelstudio.json", "labelstudio.xml", "fiftyone.json"),
    }


def test_where_nothing_is_certified_the_rows_over_the_threshold_are_kept_and_it_is_said(tmp_path: Path) -> None:
    known = calibration(99)
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", rng_of(0).normal(size=3000), known)}, known)
    (tmp_path / "flagged.csv").write_text("of an earlier audit")
    found = facts(uri, tmp_path)
    assert found["flags"]["count"] == 0
    assert found["list"] == "over_threshold.parquet"
    assert not (tmp_path / "flagged.parquet").exists()
    assert not (tmp_path / "flagged.csv").exists()
    table = pq.read_table(tmp_path / "over_threshold.parquet")
    assert len(table) == found["unknown"] > 0
    assert max(table["p_value"].to_pylist()) <= RATE + 1e-6
    assert all(row["p_value"] <= RATE + 1e-6 for row in found["highest"])
    assert len((tmp_path / "over_threshold.csv").read_text().splitlines()) == len(table) + 1
    assert {one["tags"][0] for one in json.loads((tmp_path / "fiftyone.json").read_text())["samples"]} <= {
        "over_threshold"
    }


# --- hostile, unfinished, old, mixed


def test_hostile_names_stay_text_and_are_bounded(tmp_path: Path) -> None:
    known = calibration()
    names = [
        "<script>alert(1)</script>",
        "=cmd()",
        "../../etc/passwd",
        "a\n\x1b[2J",
        "日本/" + "長" * 9000,
        "",
        "#",
        "/",
    ]
    made = rows("a.tar", [9.0] * len(names), known, names=names)
    made += [bad("a.tar", 100 + i, f"{i}" * 9000, error="x" * 9000) for i in range(3)]
    found = facts(write_run(tmp_path / "run", {"a": made}, known), tmp_path)
    assert {row["key"] for row in found["highest"]} >= {f"a.tar#{name}" for name in names if len(name) < 100}
    assert max(len(row["key"]) for row in found["highest"]) == SHOWN_LETTERS
    assert max(len(one["name"]) for one in found["by_prefix"]) <= 300
    assert all(len(one["key"]) == len(one["error"]) == SHOWN_LETTERS for one in found["bad_images"])
    assert found["statuses"] == {"not_an_image": 3, "ok": len(names)}
    stored = pq.read_table(tmp_path / "flagged.parquet")["key"].to_pylist()
    assert stored == [f"a.tar#{name}" for name in names]  # whole: these are the archive's keys


def test_an_unfinished_run_is_audited_as_far_as_it_is(tmp_path: Path) -> None:
    known = calibration()
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", [0.0] * 5, known)}, known, finished=False)
    found = facts(uri)
    assert (found["results"]["finished"], found["rows"]) == (False, 5)
    assert "not finished" in found["notes"][0]


def test_only_parts_that_success_names_count(tmp_path: Path) -> None:
    known = calibration()
    uri = write_run(tmp_path / "run", {n: rows(f"{n}.tar", [0.0] * 5, known) for n in "ab"}, known)
    (tmp_path / "run" / "_SUCCESS").write_text(json.dumps({"parts": ["b"]}))
    assert facts(uri)["rows"] == 5


def test_a_run_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results there"):
        facts(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no finished parts yet"):
        facts(write_run(tmp_path / "new", {}, calibration(), finished=False))
    with pytest.raises(InputError, match="its table is empty"):
        facts(write_run(tmp_path / "empty", {}, calibration()))


def test_a_run_of_bad_images_alone(tmp_path: Path) -> None:
    uri = write_run(tmp_path / "run", {"a": [bad("a.tar", 0, "x")], "b": []}, calibration())
    found = facts(uri, tmp_path)
    assert (found["rows"], found["images"], found["unknown_rate"]) == (1, 0, 0)
    assert found["prevalence"]["reason"] == found["flags"]["reason"] == "no image has a score"
    assert found["bad_images"] == [{"key": "a.tar#x", "status": "not_an_image", "error": "no image"}]
    assert len(pq.read_table(tmp_path / "over_threshold.parquet")) == 0


def test_parts_of_mixed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    known = calibration()
    parts = {n: rows(f"{n}.tar", [0.0] * 5, known) for n in "ab"}
    uri = write_run(tmp_path / "run", parts, known, strangers=["b"])
    with pytest.raises(FingerprintMismatch, match=r"b has other bundle \('another' against 'bbb"):
        facts(uri)


def test_a_damaged_part_is_told_by_name(tmp_path: Path) -> None:
    known = calibration()
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", [0.0] * 5, known)}, known)
    (tmp_path / "run" / "parts" / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="part a is damaged"):
        facts(uri)


def test_without_calibration_there_are_no_figures_and_the_reason_is_told(tmp_path: Path) -> None:
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", [0.0, 9.0] * 50, calibration())}, None)
    found = facts(uri, tmp_path)
    assert found["calibration"] is found["false_alarm_rate"] is None
    for name, figures in (("prevalence", ("estimate", "low", "high", "lower_bound")), ("flags", ("count",))):
        assert "fit the bundle again" in found[name]["reason"]
        assert all(found[name][figure] is None for figure in figures)
    assert found["unknown"] == 50
    assert sum(found["histograms"]["unknown_score"]["archive"]) == sum(found["histograms"]["p_value"]["archive"]) == 100


def test_p_values_of_another_calibration_give_no_figures(tmp_path: Path) -> None:
    made = rows("a.tar", rng_of(0).normal(size=200), calibration(999))
    uri = write_run(tmp_path / "run", {"a": made}, calibration(777))
    assert "not of the recorded calibration" in facts(uri)["prevalence"]["reason"]


def test_quarantined_shards_are_told(tmp_path: Path) -> None:
    known = calibration()
    uri = write_run(tmp_path / "run", {"a": rows("a.tar", [0.0], known)}, known)
    (tmp_path / "run" / "quarantine").mkdir()
    mark = {"shard": "/archive/<b>.tar", "version": "1", "reason": "not a tar", "attempts": 1}
    (tmp_path / "run" / "quarantine" / "part-b.json").write_text(json.dumps(mark))
    assert facts(uri)["quarantined"] == [{"shard": "/archive/<b>.tar", "reason": "not a tar"}]


# --- baseline


def test_what_changed_since_the_baseline(tmp_path: Path) -> None:
    known = calibration()
    shared = rows("a.tar", rng_of(0).normal(size=600), known)
    before = write_run(tmp_path / "before", {"a": shared, "b1": rows("b.tar", [0.0] * 300, known)}, known)
    replaced = rows("b.tar", [9.0] * 290, known, index=[2] * 290)
    now = write_run(tmp_path / "now", {"a": shared, "b2": replaced, "c": rows("c.tar", [9.0] * 40, known)}, known)
    found = facts(now, baseline=before)["baseline"]
    assert (found["appeared"], found["vanished"]) == (40, 10)
    change = found["unknown_rate_change"]
    assert 0 < change["low"] < change["difference"] < change["high"]
    assert change["p_value"] <= change["adjusted_p_value"] < 1e-6
    assert found["predicted_class_change"][0]["name"] == "ship"
    assert {one["name"] for one in found["predicted_class_change"]} == set(CLASSES)
    same = facts(now, baseline=now)["baseline"]
    assert (same["appeared"], same["vanished"], same["unknown_rate_change"]["difference"]) == (0, 0, 0)
    assert same["unknown_rate_change"]["adjusted_p_value"] == 1


def test_what_moved_is_estimated_where_keys_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradosr.audit.drift.MOST_KEYS", 1000)
    known = calibration()
    before = write_run(tmp_path / "before", {"a1": rows("a.tar", [0.0] * 6000, known)}, known)
    now = write_run(tmp_path / "now", {"a2": rows("a.tar", [0.0] * 9000, known)}, known)
    found = facts(now, baseline=before)
    assert found["baseline"]["appeared"] == pytest.approx(3000, rel=0.2)
    assert found["baseline"]["vanished"] == 0
    assert any("estimated from a sample" in note for note in found["notes"])


def test_a_baseline_of_another_bundle_is_refused_with_the_difference(tmp_path: Path) -> None:
    known = calibration()
    parts = {"a": rows("a.tar", [0.0], known)}
    one, two = (write_run(tmp_path / b, parts, known, bundle=b * 64) for b in "xy")
    with pytest.raises(ConfigError, match=rf"{two}: a baseline of another bundle \(yyy.* against xxx"):
        facts(one, baseline=two)


# --- memory, and the command


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    known = calibration()
    scores = rng_of(0).normal(size=2000) + 1

    def peak(parts: int) -> int:
        made = {f"p{i}": rows(f"{i:03}.tar", scores, known) for i in range(parts)}
        uri = write_run(tmp_path / f"{parts}", made, known)
        tracemalloc.start()
        facts(uri, tmp_path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(1)  # what is imported at first
    assert peak(24) < 1.3 * peak(3)


def gradosr(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_audits_what_score_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path, features="all"))
    out = tmp_path / "audit"
    code, shown, _ = gradosr(capsys, "audit", tmp_path / "results", "--out", out)
    assert code == 0
    assert "24 scored" in shown
    document = json.loads((out / "audit.json").read_text())
    assert document["calibration"] == {"images": 40, "kind": "pooled"}
    assert document["false_alarm_rate"] == RATE
    assert sum(document["histograms"]["unknown_score"]["calibration"]) == 40
    assert document["results"]["bundle"] == document["results"]["fingerprint"]["bundle"]
    assert (out / document["list"]).exists()
    code, shown, _ = gradosr(
        capsys, "audit", tmp_path / "results", "--out", out, "--fdr", 0.2, "--json", "--baseline", tmp_path / "results"
    )
    assert code == 0
    assert json.loads(shown)["flags"]["level"] == 0.2
    assert json.loads(shown)["baseline"]["appeared"] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere", "--out", "o"], 4, "no results there"),
        (["nowhere"], 4, "no results there"),
        (["nowhere", "--out", "o", "--fdr", "1.5"], 2, "Invalid value for '--fdr'"),
        (["nowhere", "--out", "o", "--set", "fdrr=1"], 2, "did you mean fdr?"),
        (["run", "--out", "file/o"], 4, "file/o: cannot be written: not a directory"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    write_run(tmp_path / "run", {"a": rows("a.tar", [0.0], calibration())}, calibration())
    found, _, err = gradosr(capsys, "audit", *arguments)
    assert found == code
    assert told in err


def test_an_audit_of_a_bucket_is_that_of_the_folder(tmp_path: Path, bucket: str, store: Store) -> None:
    uri = grouped(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            store.write(f"{bucket}/run/{path.relative_to(tmp_path / 'run')}", path.read_bytes())
    there, here = audit(store, f"{bucket}/run", AuditSettings(), out=tmp_path / "out"), facts(uri)
    assert any("pictures missing: no longer in the archive" in note for note in there["notes"])
    for volatile in ("made", "results", "notes"):
        del there[volatile], here[volatile]
    assert json.loads(json.dumps(there)) == here
    assert (tmp_path / "out" / "flagged.parquet").exists()


@pytest.mark.slow
def test_the_bench_finds_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = gradosr(capsys, "bench", "audit", "--rows", 12_000, "--folder", tmp_path, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["rows"], found["parts"], found["groups"]) == (12_000, 2, 4)
    assert found["estimate"] == pytest.approx(0.1, abs=0.04)
    assert not list(tmp_path.iterdir())
