"""A run's promises, without Ray: a row per image, resume, what changed leaves the table, all is checked first."""

import io
import json
import re
import subprocess
import sys
import time
import zlib
from dataclasses import astuple
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from hostile import bomb_png, cmyk_jpeg, cut, encoded, grey16_png, noise, parquet_file, tar
from tiny import CLASSES, labelled_tar, local_job, make_bundle, picture, plain, rows_of, run_here, write_archive

from gradosr.config import ScoreJob, load_job
from gradosr.errors import ConfigError, FingerprintMismatch, GradosrError, InputError, RunFailed
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.run.plan import prepare
from gradosr.store import Store


@pytest.fixture
def job(tmp_path: Path) -> ScoreJob:
    write_archive(Store(), f"{tmp_path}/archive")
    return local_job(tmp_path)


def mtimes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}


def test_every_image_becomes_one_row_with_the_schema(job: ScoreJob, tmp_path: Path) -> None:
    plan, summary = run_here(job)
    assert summary.counts == {"rows": 24, "ok": 24, "unknown": summary.counts["unknown"]}
    assert summary.scored == 4
    assert not summary.failed
    rows = rows_of(tmp_path / "results", ("label", "row", "shard", "width", "status", "predicted_class"))
    assert list(rows) == [f"{i // 6:05}.tar#{i:05}.png" for i in range(24)]
    for i, (label, row, shard, width, status, predicted) in enumerate(rows.values()):
        assert (label, row, shard, width, status) == (CLASSES[i % 3], i % 6, f"{i // 6:05}.tar", 16, "ok")
        assert predicted in CLASSES
    part = next((tmp_path / "results" / "parts").iterdir())
    metadata = pq.read_metadata(part).metadata
    assert json.loads(metadata[b"gradosr.counts"])["rows"] == 6
    assert json.loads(metadata[b"gradosr.shard"])["uri"].endswith(".tar")
    assert json.loads(metadata[b"gradosr.fingerprint"]) == json.loads(json.dumps(plan.fingerprint))
    seconds = json.loads(metadata[b"gradosr.seconds"])
    assert set(seconds) == {"read", "decode", "score", "write"}
    assert all(spent > 0 for spent in seconds.values())
    assert not (tmp_path / "results" / "quarantine").exists()


def test_open_set_columns_agree(job: ScoreJob, tmp_path: Path) -> None:
    run_here(job)
    for path in (tmp_path / "results" / "parts").iterdir():
        for row in pq.read_table(path).to_pylist():
            assert row["is_unknown"] == (row["p_value"] <= 0.05)
            assert row["open_set_class"] == ("unknown" if row["is_unknown"] else row["predicted_class"])
            assert row["predicted_class"] == CLASSES[row["predicted_index"]]


def test_a_finished_run_is_recognised_and_not_touched(job: ScoreJob, tmp_path: Path) -> None:
    run_here(job)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*") if path.is_file()}
    plan, summary = run_here(job)
    assert (len(plan.pending), summary.scored, summary.counts["rows"]) == (0, 0, 24)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*") if path.is_file()}


def test_the_settings_of_the_last_command_lie_beside_the_table(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=2)
    secret = {"env_vars": {"TOKEN": "a-secret"}, "pip": ["x"]}
    run_here(local_job(tmp_path, runtime_env=secret), only=1)
    job = local_job(tmp_path, batch_size=3)
    kept = load_job(ScoreJob, f"{tmp_path}/results/config.yaml")
    assert (kept.batch_size, kept.runtime_env) == (4, {"pip": ["x"]})
    run_here(job)
    assert load_job(ScoreJob, f"{tmp_path}/results/config.yaml") == job


def test_a_run_begun_without_features_by_default_goes_on_so(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=3)
    run_here(local_job(tmp_path, features="none"), only=1)
    with pytest.raises(FingerprintMismatch, match="features was 'none', is 'unknown'"):
        prepare(local_job(tmp_path, features="unknown"))
    plan, summary = run_here(local_job(tmp_path))
    assert (plan.job.features, len(plan.pending), summary.counts["rows"]) == ("none", 2, 18)
    run_here(local_job(tmp_path, output=f"{tmp_path}/new"), only=1)
    assert prepare(local_job(tmp_path, output=f"{tmp_path}/new")).job.features == "unknown"


def test_a_run_cut_short_is_finished_by_the_same_command(job: ScoreJob, tmp_path: Path) -> None:
    _, first = run_here(job, only=1)
    assert len(first.failed) == 3
    assert not (tmp_path / "results" / "_SUCCESS").exists()
    before = mtimes(tmp_path / "results")
    plan, second = run_here(job)
    assert (len(plan.pending), second.scored, second.counts["rows"]) == (3, 3, 24)
    assert before.items() <= mtimes(tmp_path / "results").items()


def test_what_changed_or_vanished_leaves_the_table(job: ScoreJob, tmp_path: Path) -> None:
    run_here(job)
    before = mtimes(tmp_path / "results")
    (tmp_path / "archive" / "00001.tar").unlink()
    (tmp_path / "archive" / "00002.tar").write_bytes(labelled_tar(100, 2))
    plan, summary = run_here(job)
    assert (len(plan.pending), summary.scored, summary.superseded) == (1, 1, 2)
    rows = rows_of(tmp_path / "results")
    assert sorted(rows) == sorted(
        [f"00000.tar#{i:05}.png" for i in range(6)]
        + [f"00002.tar#{i:05}.png" for i in (100, 101)]
        + [f"00003.tar#{i:05}.png" for i in range(18, 24)]
    )
    kept = mtimes(tmp_path / "results")
    assert len(set(before) & set(kept)) == 2
    assert all(before[name] == kept[name] for name in set(before) & set(kept))


def test_old_success_is_taken_away_while_the_table_changes(job: ScoreJob, tmp_path: Path) -> None:
    run_here(job)
    (tmp_path / "archive" / "00004.tar").write_bytes(labelled_tar(200, 1))
    run_here(job, only=0)
    assert not (tmp_path / "results" / "_SUCCESS").exists()


def test_single_images_form_groups_that_never_reshuffle(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    for i in range(0, 20, 2):
        (folder / CLASSES[i % 3]).mkdir(parents=True, exist_ok=True)
        (folder / CLASSES[i % 3] / f"{i:03}.png").write_bytes(picture(i))
    job = local_job(tmp_path, input={"kind": "images", "uri": str(folder), "group_size": 4})
    _, first = run_here(job)
    assert (first.shards, first.scored, first.counts["rows"]) == (3, 3, 10)
    before = mtimes(tmp_path / "results")
    for i in range(1, 20, 2):
        (folder / CLASSES[i % 3] / f"{i:03}.png").write_bytes(picture(i))
    _, second = run_here(job)
    assert (second.shards, second.scored, second.counts["rows"], second.superseded) == (6, 3, 20, 0)
    assert before.items() <= mtimes(tmp_path / "results").items()
    rows = rows_of(tmp_path / "results", ("label",))
    assert rows["cat/000.png"] == ("cat",)
    assert len(rows) == 20


def test_a_run_over_groups_goes_on_when_images_changed_or_vanished_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(picture(i))
    job = local_job(tmp_path, input={"kind": "images", "uri": str(folder), "group_size": 2})
    _, first = run_here(job, only=1)
    assert (first.scored, len(first.failed)) == (1, 3)
    (folder / "2.png").write_bytes(picture(20))
    (folder / "5.png").unlink()
    plan, second = run_here(job)
    assert ([shard.name for shard in plan.pending], second.failed) == ([f"group-00000{n}" for n in (2, 3, 4)], {})
    assert sorted(rows_of(tmp_path / "results")) == [f"{i}.png" for i in (0, 1, 2, 3, 4, 6, 7)]
    assert not run_here(job)[0].pending


def test_a_folder_with_groups_recorded_by_name_goes_on(tmp_path: Path) -> None:
    folder, record = tmp_path / "archive", tmp_path / "results" / "groups"
    folder.mkdir()
    record.mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.png").write_bytes(picture(i))
    (record / "000000.json").write_text(json.dumps([["0.png", "2.png"], ["4.png"]]))
    job = local_job(tmp_path, input={"kind": "images", "uri": str(folder), "group_size": 2})
    _, summary = run_here(job)
    assert (summary.shards, summary.scored, summary.counts["ok"]) == (4, 4, 6)
    groups = rows_of(tmp_path / "results", ("shard",))
    assert groups["4.png"] == ("group-000002",)
    assert groups["5.png"] == ("group-000004",)
    assert not run_here(job)[0].pending


def test_of_two_drivers_that_find_the_same_new_images_one_records_them(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "0.png").write_bytes(picture(0))
    job = local_job(tmp_path, input={"kind": "images", "uri": str(folder)})
    first, second = prepare(job), prepare(job)
    first.claim()
    with pytest.raises(RunFailed, match="another driver recorded groups of images meanwhile; run this again"):
        second.claim()
    assert not prepare(job).groups.groups


def test_bad_images_are_rows_with_a_reason(tmp_path: Path) -> None:
    members = {
        "good.png": (picture(0), "ok"),
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"this is no image at all", "not_an_image"),
        "cut.jpg": (cut(encoded(noise(), "JPEG")), "truncated"),
        "cmyk.jpg": (cmyk_jpeg(), "ok"),
        "sixteen.png": (grey16_png([0, 65535, 100, 30000]), "ok"),
        "bomb.png": (bomb_png(), "too_large"),
    }
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.tar").write_bytes(tar((name, data) for name, (data, _) in members.items()))
    _, summary = run_here(local_job(tmp_path))
    rows = rows_of(tmp_path / "results", ("status", "error", "unknown_score", "width"))
    assert {key.split("#")[1]: row[0] for key, row in rows.items()} == {n: s for n, (_, s) in members.items()}
    for status, error, score, _ in rows.values():
        assert (error is None) == (status == "ok") == (score is not None)
    assert rows["a.tar#bomb.png"][3] == 30_000
    assert summary.counts["rows"] == 7
    assert summary.counts["ok"] == 3


BAD = {"empty.jpg": b"", "text.jpg": b"this is no image at all", 'a\nb\x1b[31m"\u202e.png': b"neither is this"}


def write_bad_archive(folder: Path) -> None:
    """bad.tar of one good and three bad images, good.tar of six good ones."""
    folder.mkdir(parents=True)
    (folder / "bad.tar").write_bytes(tar([("good.png", picture(0)), *BAD.items()]))
    (folder / "good.tar").write_bytes(labelled_tar(10, 6))


def test_bad_images_are_also_listed_apart(tmp_path: Path) -> None:
    write_bad_archive(tmp_path / "archive")
    plan, _ = run_here(local_job(tmp_path))
    (path,) = (tmp_path / "results" / "quarantine").iterdir()
    assert path.name == f"{plan.shards[0].part}.images.jsonl"
    lines = path.read_bytes().split(b"\n")
    assert (len(lines), lines[-1]) == (4, b"")
    assert all(0x20 <= byte < 0x7F for byte in b"".join(lines))
    listed = {row["key"]: (row["status"], row["error"]) for row in map(json.loads, lines[:-1])}
    rows = rows_of(tmp_path / "results", ("status", "error"))
    assert listed == {key: row for key, row in rows.items() if row[0] != "ok"}
    assert set(listed) == {f"bad.tar#{name}" for name in BAD}
    assert pyarrow.json.read_json(path)["key"].to_pylist() == list(listed)


def test_listed_bad_images_are_no_quarantine_mark_and_leave_with_their_part(tmp_path: Path) -> None:
    write_bad_archive(tmp_path / "archive")
    before, summary = run_here(local_job(tmp_path))
    assert summary.quarantined == ()
    assert not run_here(local_job(tmp_path))[0].pending
    part, good = (shard.part for shard in before.shards)
    (tmp_path / "archive" / "bad.tar").write_bytes(labelled_tar(0, 3))
    stray = tmp_path / "results" / "quarantine" / f"{good}.images.jsonl"
    stray.write_text("{}\n")  # as a worker leaves it that dies before it puts its part
    run_here(local_job(tmp_path))
    assert not list((tmp_path / "results" / "quarantine").iterdir())
    names = {path.name for path in (tmp_path / "results" / "superseded").iterdir()}
    assert names == {"_SUCCESS", f"{part}.parquet", f"{part}.images.jsonl", stray.name}


@pytest.mark.parametrize(
    ("bounds", "exceeded"),
    [
        ({}, [("max_bad_images", 3, 10, 0)]),
        ({"max_bad_images": 3}, []),
        ({"max_bad_images": 2}, [("max_bad_images", 3, 10, 2)]),
        ({"max_bad_images": 0}, [("max_bad_images", 3, 10, 0)]),
        ({"max_bad_images": 0.3}, []),
        ({"max_bad_images": 0.29}, [("max_bad_images", 3, 10, 2)]),
    ],
)
def test_too_many_bad_images_are_told_of_the_whole_table(
    tmp_path: Path, bounds: dict[str, float], exceeded: list[tuple[object, ...]]
) -> None:
    write_bad_archive(tmp_path / "archive")
    job = local_job(tmp_path, **bounds)
    assert run_here(job, only=1)[1].exceeded == ()  # failed shards: the table is not whole
    for scored in (1, 0):
        _, summary = run_here(job)
        assert (summary.scored, [astuple(bound) for bound in summary.exceeded]) == (scored, exceeded)
    assert (tmp_path / "results" / "_SUCCESS").exists()


def test_a_share_is_taken_as_it_is_written(tmp_path: Path) -> None:
    """29 of 50, of which binary fractions make 28.99."""
    (tmp_path / "archive").mkdir()
    images = [(f"{i}.png", picture(i) if i < 21 else b"") for i in range(50)]
    (tmp_path / "archive" / "a.tar").write_bytes(tar(images))
    assert not run_here(local_job(tmp_path, max_bad_images=0.58))[1].exceeded
    assert run_here(local_job(tmp_path, max_bad_images=0.57))[1].exceeded


def test_too_many_quarantined_shards_are_told(job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "archive" / "00001.tar").write_bytes(b"not a tar at all" * 100)
    _, summary = run_here(job)
    assert [astuple(bound) for bound in summary.exceeded] == [("max_bad_shards", 1, 4, 0)]
    assert (tmp_path / "results" / "_SUCCESS").exists()
    for allowance in (1, 0.25):
        assert not run_here(local_job(tmp_path, max_bad_shards=allowance))[1].exceeded
    assert run_here(local_job(tmp_path, max_bad_shards=0.2))[1].exceeded


def test_stats_are_merged_and_by_part_and_those_of_a_lost_driver_come_from_the_footers(
    job: ScoreJob, tmp_path: Path
) -> None:
    _, summary = run_here(job)
    stats = json.loads((tmp_path / "results" / "stats.json").read_text())
    success = json.loads((tmp_path / "results" / "_SUCCESS").read_text())
    by_part = pq.read_table(tmp_path / "results" / "stats.parquet")
    assert by_part["part"].to_pylist() == success["parts"]
    assert by_part["counts.rows"].to_pylist() == [6, 6, 6, 6]
    assert stats["counts"] == success["counts"] == summary.counts
    for stage in ("read", "decode", "score", "write"):
        spent = sum(by_part[f"seconds.{stage}"].to_pylist())
        assert stats["seconds"][stage] == summary.seconds[stage] == pytest.approx(spent, abs=1e-3)
        assert stats["images_per_second"][stage] == pytest.approx(24 / spent, rel=0.01)
    for name in ("stats.json", "stats.parquet", "_SUCCESS"):
        (tmp_path / "results" / name).unlink()
    _, again = run_here(job)
    assert again.counts == summary.counts
    assert again.seconds["score"] == summary.seconds["score"]
    assert 0 < again.seconds["write"] < summary.seconds["write"]


def test_an_image_without_a_finite_logit_is_a_row_with_a_reason_and_its_neighbours_are_untouched(
    tmp_path: Path,
) -> None:
    arch, members = "tiny_net:bursting", [(f"{i}.png", picture(i)) for i in range(5)]
    make_bundle(Store(), f"{tmp_path}/bundle", arch=arch)
    found = []
    for name, third in (("as_they_are", picture(2)), ("one_white", plain())):
        Store().write(f"{tmp_path}/{name}/a.tar", tar([*members[:2], ("2.png", third), *members[3:]]))
        job = local_job(tmp_path, trust=[arch], input={"kind": "tar", "uri": f"{tmp_path}/{name}/"}, batch_size=5,
                        output=f"{tmp_path}/results_{name}")  # fmt: skip
        _, summary = run_here(job)
        found.append(rows_of(tmp_path / f"results_{name}", ("status", "error", "predicted_class", "unknown_score")))
    before, after = found
    assert {status for status, *_ in before.values()} == {"ok"}
    assert after.pop("a.tar#2.png") == ("non_finite", "a logit or a gradient norm is not a finite number", None, None)
    assert summary.counts["non_finite"] == 1
    for key, (*facts, score) in after.items():
        assert facts == list(before[key][:-1])
        assert score == pytest.approx(before[key][-1], rel=1e-3, abs=1e-3)


def test_a_cut_tar_keeps_its_readable_rows(tmp_path: Path) -> None:
    whole = labelled_tar(0, 6)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.tar").write_bytes(whole[: len(whole) // 2])
    _, summary = run_here(local_job(tmp_path))
    statuses = [status for (status,) in rows_of(tmp_path / "results", ("status",)).values()]
    assert statuses.count("truncated") == 1
    assert statuses[:-1] == ["ok"] * (len(statuses) - 1)
    assert summary.counts["truncated"] == 1


def test_a_shard_that_cannot_be_read_is_quarantined_and_retried_only_when_asked(job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "archive" / "00001.tar").write_bytes(b"not a tar at all" * 100)
    _, summary = run_here(job)
    assert summary.quarantined == ("00001.tar",)
    assert summary.counts["rows"] == 18
    mark = json.loads(next((tmp_path / "results" / "quarantine").iterdir()).read_text())
    assert mark["shard"].endswith("00001.tar")
    assert "tar" in mark["reason"]
    plan, again = run_here(job)
    assert (len(plan.pending), again.quarantined) == (0, ("00001.tar",))
    plan, _ = run_here(local_job(tmp_path, retry_quarantined=True))
    assert len(plan.pending) == 1
    (tmp_path / "archive" / "00001.tar").write_bytes(labelled_tar(6, 6))
    _, mended = run_here(job)
    assert (mended.quarantined, mended.counts["rows"]) == ((), 24)
    assert not list((tmp_path / "results" / "quarantine").iterdir())


@pytest.mark.parametrize(("wanted", "stored"), [("none", 0), ("unknown", None), ("all", 6)])
def test_representation_and_features_are_stored_as_asked(tmp_path: Path, wanted: str, stored: int | None) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    run_here(local_job(tmp_path, representation=wanted, features=wanted))
    table = pq.read_table(next((tmp_path / "results" / "parts").iterdir()))
    if wanted == "none":
        assert not {"representation", "features"} & set(table.column_names)
        return
    unknown = sum(table["is_unknown"].to_pylist())
    for name, width in (("representation", 2 * 7), ("features", 64)):
        values = [value for value in table[name].to_pylist() if value is not None]
        assert len(values) == (unknown if stored is None else stored)
        assert all(len(value) == width for value in values)


@pytest.mark.parametrize(
    ("wanted", "drawn"), [("none", False), ("unknown", False), ("all", True), ({"sample": 2}, None)]
)
def test_signals_are_stored_as_asked(tmp_path: Path, wanted: object, drawn: bool | None) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=4)
    run_here(local_job(tmp_path, signals=wanted))
    table = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "results" / "parts").iterdir())))
    widths = {"logits": 3, "features": 64, "middle": 8, "log_norms": 2 * 7}
    # features are stored of unknown images anyway
    assert set(widths) & set(table.column_names) == ({"features"} if wanted == "none" else set(widths))
    if wanted == "none":
        return
    stored = {tuple(table[name].is_valid().to_pylist()) for name in widths}
    assert len(stored) == 1
    expected = [
        unknown or (zlib.crc32(key.encode()) % 2 == 0 if drawn is None else drawn)
        for key, unknown in zip(table["key"].to_pylist(), table["is_unknown"].to_pylist(), strict=True)
    ]
    assert list(stored.pop()) == expected
    for name, width in widths.items():
        assert {len(values) for values in table[name].drop_null().to_pylist()} == ({width} if any(expected) else set())
    if wanted != "unknown":
        assert any(expected)
    assert all(expected) == (wanted == "all")


@pytest.mark.slow
def test_a_process_that_has_read_the_table_ends_well(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    run_here(local_job(tmp_path))
    part = next((tmp_path / "results" / "parts").iterdir())
    pq.write_table(pa.concat_tables([pq.read_table(part)] * 4000), part, row_group_size=1000)
    ends = (  # of processes that end at once, while pyarrow's threads may still hold a file of Python's
        "import os, sys\n"
        "from gradosr.results.folder import RunFolder\n"
        "from gradosr.store import Store\n"
        "for _ in range(25):\n"
        "    if not (pid := os.fork()):\n"
        "        sys.exit(len(RunFolder(Store(), sys.argv[1]).table(['key', 'p_value'])[0]) != 24_000)\n"
        "    assert not (status := os.waitpid(pid, 0)[1]), status\n"
    )
    subprocess.run([sys.executable, "-c", ends, f"{tmp_path}/results"], check=True, timeout=100)


def test_a_folder_of_another_fingerprint_is_refused_with_the_difference(job: ScoreJob, tmp_path: Path) -> None:
    run_here(job)
    with pytest.raises(FingerprintMismatch, match="max_pixels was 178956970, is 1000"):
        prepare(local_job(tmp_path, max_pixels=1000))
    make_bundle(Store(), str(tmp_path / "bundle"), seed=1)
    with pytest.raises(FingerprintMismatch, match="bundle was '"):
        prepare(job)


def test_every_fault_is_told_at_once_and_nothing_written(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    job = local_job(tmp_path, bundle=str(tmp_path / "nowhere"), input={"kind": "tar", "uri": f"{tmp_path}/archive/"})
    with pytest.raises(InputError) as caught:
        prepare(job)
    assert "nowhere: no bundle there" in str(caught.value)
    assert "no .tar" in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_an_untrusted_factory_is_refused_before_anything(job: ScoreJob, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("`trust: [tiny_net:tiny]`")):
        prepare(local_job(tmp_path, trust=()))


def test_a_missing_column_is_told_before_work_and_quarantined_later(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.parquet").write_bytes(parquet_file({"picture": [picture(0)]}))
    parquet = {"kind": "parquet", "uri": f"{tmp_path}/archive/"}
    with pytest.raises(InputError, match="picture"):
        prepare(local_job(tmp_path, input=parquet))
    (tmp_path / "archive" / "b.parquet").write_bytes(parquet_file({"image": [picture(0), picture(1)]}))
    _, summary = run_here(local_job(tmp_path, input=parquet))
    assert (summary.quarantined, summary.counts["rows"]) == (("a.parquet",), 2)


def test_a_run_that_goes_on_reads_nothing_of_shards_that_are_done(
    seaweedfs: SeaweedFS, bucket: str, store: Store, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        store.write(f"{bucket}/archive/{name}.parquet", parquet_file({"image": [picture(0)]}))
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        job = local_job(
            tmp_path, input={"kind": "parquet", "uri": f"{bucket}/archive/"},
            store={"endpoint_url": proxy.endpoint_url, "addressing_style": "path"},
        )  # fmt: skip
        run_here(job)
        assert len([path for path in proxy.read if path.endswith(".parquet")]) == 2
        proxy.read.clear()
        store.write(f"{bucket}/archive/c.parquet", parquet_file({"image": [picture(1)]}))
        assert len(prepare(job).pending) == 1
        assert not [path for path in proxy.read if path.endswith(".parquet")]


def test_an_output_inside_the_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.parquet").write_bytes(parquet_file({"image": [picture(0)]}))
    source = {"kind": "parquet", "uri": f"{tmp_path}/archive/"}
    with pytest.raises(ConfigError, match="lies inside the input"):
        prepare(local_job(tmp_path, input=source, output=f"{tmp_path}/archive/results"))
    for uri in (f"{tmp_path}/archive/*.parquet", f"{tmp_path}/archive/a.parquet"):
        assert prepare(local_job(tmp_path, input=source | {"uri": uri}, output=f"{tmp_path}/archive/results")).pending


def test_run_json_holds_no_environment(job: ScoreJob, tmp_path: Path) -> None:
    secret = local_job(tmp_path, runtime_env={"env_vars": {"TOKEN": "hunter2"}})
    run_here(secret)
    for path in (tmp_path / "results").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes()


def test_an_unwritable_output_is_one_line(job: ScoreJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    plan = prepare(local_job(tmp_path, output=f"{tmp_path}/file/results"))
    with pytest.raises(GradosrError) as caught:
        plan.claim()
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)


def test_through_s3(bucket: str, store: Store, s3_settings: object, tmp_path: Path) -> None:
    write_archive(store, f"{bucket}/archive", shards=2)
    store.write(f"{bucket}/archive/bad.tar", tar([("bad.png", b"no image")]))
    make_bundle(store, f"{bucket}/bundle")
    job = local_job(
        tmp_path, bundle=f"{bucket}/bundle", input={"kind": "tar", "uri": f"{bucket}/archive/"}, output=f"{bucket}/out",
        store=s3_settings,
    )  # fmt: skip
    _, summary = run_here(job)
    assert summary.counts["rows"] == 13
    for part in store.list(f"{bucket}/out/parts/"):
        shard = json.loads(pq.read_metadata(io.BytesIO(store.read(part.uri))).metadata[b"gradosr.shard"])
        assert 0 <= time.time() - shard["modified"] < 3600
    (listed,) = store.list(f"{bucket}/out/quarantine/")
    assert json.loads(store.read(listed.uri))["key"] == "bad.tar#bad.png"
    etags = {o.uri: o.version for o in store.list(f"{bucket}/out/parts/")}
    _, again = run_here(job)
    assert (again.scored, again.counts["rows"]) == (0, 13)
    assert etags == {o.uri: o.version for o in store.list(f"{bucket}/out/parts/")}
