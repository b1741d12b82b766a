"""Two runs over one archive side by side: what changes sides, on which labels figures rest, and the page."""

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_document import HOSTILE
from gradosr.jobs.cli import run
from made_runs import CLASSES, bad, calibration, rows, write_run
from test_report import Page
from tiny import local_job, make_bundle, run_here, write_archive

from gradosr.audit.rows import id_of
from gradosr.comparison import compare, sides
from gradosr.comparison.page import render
from gradosr.config import S3Settings
from gradosr.errors import ConfigError, InputError
from gradosr.labels.folder import rows_of, write_labels
from gradosr.store import Store

KNOWN = calibration()
SCORES = np.random.default_rng(1).normal(0.5, 1.2, (2, 400)).astype(np.float32)
Make = Callable[..., tuple[str, str]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make two runs of two parts and a row without a score; `label` gives the archive's label of an image, by place."""

    def runs(
        after: Sequence[float] | np.ndarray = SCORES[0] + 0.3 * SCORES[1],
        label: Callable[[int], str | None] = lambda _: None,
        **changes: Any,
    ) -> tuple[str, str]:
        uris = []
        for name, scores in (("before", SCORES[0]), ("after", after)):
            parts = {}
            for place, half in enumerate(np.array_split(np.asarray(scores), 2)):
                made = rows(f"{place}.tar", half, KNOWN, names=changes.get("names"))
                for index, row in enumerate(made):
                    row["label"] = label(200 * place + index)
                parts[f"part-{place}"] = [*made, bad(f"{place}.tar", len(made), "bad.jpg")]
            uris.append(write_run(tmp_path / name, parts, KNOWN, bundle=name))
        return uris[0], uris[1]

    return runs


def say(run_uri: str, labels: dict[str, str], who: str = "ann") -> None:
    when = datetime(2026, 11, 1, tzinfo=timezone.utc)
    opinions = [
        {"key": key, "label": label, "who": who, "when": when, "source": "csv"} for key, label in labels.items()
    ]
    write_labels(Store(), run_uri, rows_of(opinions))


def edit(run_uri: str, **changes: Any) -> None:
    path = Path(run_uri) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_images_that_change_sides_are_counted_by_class_and_listed_by_change(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sides, "ROWS", 7)
    monkeypatch.setattr(sides, "MOST_SHOWN", 5)
    before, after = make()
    found = compare(Store(), before, after)
    p_values = np.stack([KNOWN.p_values(SCORES[0]), KNOWN.p_values(SCORES[0] + 0.3 * SCORES[1])])
    was, now = p_values <= 0.05
    assert found["table"] == {
        "known": {"known": int((~was & ~now).sum()), "unknown": int((~was & now).sum())},
        "unknown": {"known": int((was & ~now).sum()), "unknown": int((was & now).sum())},
    }
    assert min(found["table"]["known"]["unknown"], found["table"]["unknown"]["known"]) > 5
    assert (found["rows"], found["images"], found["parts"], found["notes"]) == (402, 400, 2, [])
    index = np.arange(400) % 200 % 3
    for one in found["by_class"]:
        own = index == CLASSES.index(one["name"])
        expected = (own.sum(), (own & ~was & now).sum(), (own & was & ~now).sum())
        assert (one["images"], one["to_unknown"], one["to_known"]) == expected
    for name, moved in (("to_unknown", ~was & now), ("to_known", was & ~now)):
        change = np.abs(np.diff(p_values, axis=0)[0])
        wanted = sorted(change[moved].tolist(), reverse=True)[:5]
        assert [abs(row["p_value"] - row["p_value_before"]) for row in found[name]] == pytest.approx(wanted)
        for row in found[name]:
            place = 200 * int(row["key"][0]) + int(row["key"][6:11])
            assert moved[place]
            assert (row["p_value_before"], row["p_value"]) == pytest.approx(tuple(p_values[:, place]))


def test_figures_rest_on_the_labels_of_people_and_of_the_archive_that_no_detector_learned_from(make: Make) -> None:
    better = SCORES[0] + np.where(np.arange(400) % 4 == 0, 1.0, 0.0)
    before, after = make(better, lambda place: ["deer", *CLASSES][place % 4] if place < 200 else None)
    assert compare(Store(), before, after)["labelled"]["images"] == 200
    own = {f"1.tar#{place:05}.jpg": "unknown" if place % 4 == 0 else "known" for place in range(40)}
    say(before, own)
    say(after, {"0.tar#00000.jpg": "cat", "0.tar#00001.jpg": "known"}, "bob")
    say(before, {"1.tar#00003.jpg": "dog", "1.tar#00005.jpg": "unknown"}, "bob")  # the latter is a conflict
    found = compare(Store(), before, after)
    assert (found["labelled"]["images"], found["labelled"]["unknown"]) == (239, 49 + 10)
    edit(after, learned=[id_of(key) for key in [*own, "0.tar#00002.jpg", "of another run"]])
    found = compare(Store(), before, after)
    assert (found["labelled"]["images"], found["learned"]["images"]) == (199, 40)
    assert (found["after"]["learned_from"], found["before"]["learned_from"]) == (42, 0)
    area = found["labelled"]["auroc"]
    assert area["difference"]["low"] > 0.1
    assert area["after"]["estimate"] - area["before"]["estimate"] == pytest.approx(area["difference"]["estimate"])
    assert found["labelled"]["found"]["difference"]["estimate"] > 0


def test_without_labels_of_both_kinds_there_is_no_area(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = make()
    assert run(["compare", before, after]) == 0
    assert "No AUROC: it takes two known and two unknown images" in capsys.readouterr().out
    say(before, {"0.tar#00000.jpg": "unknown"})
    found = compare(Store(), before, after)["labelled"]
    assert (found["auroc"], found["false_alarms"], found["found"] is None) == (None, None, False)


def test_labels_of_a_class_that_one_bundle_alone_knows_are_left_out_and_told(make: Make) -> None:
    before, after = make(label=lambda place: ["deer", "cat"][place % 2])
    edit(after, classes=[*CLASSES, "deer"])
    found = compare(Store(), before, after)
    assert found["labelled"]["images"] == 200
    assert found["notes"] == [
        "200\u00a0labelled images left out of the figures, of a class that one of the two bundles alone knows"
    ]


def test_runs_that_cannot_be_compared_are_refused_in_one_line(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = make()
    other = write_run(tmp_path / "other", {"part-0": rows("0.tar", SCORES[0], KNOWN)}, KNOWN, kind="images")
    assert run(["compare", before, other]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "other: a run over another archive than" in line
    for name in ("part-0", "part-1"):
        shutil.copy(Path(before) / "parts/part-1.parquet", Path(after) / f"parts/{name}.parquet")
    shutil.copy(Path(before) / "run.json", after)
    with pytest.raises(InputError, match=r"part part-0 has other rows"):
        compare(Store(), before, after)
    for path in (Path(after) / "parts").iterdir():
        path.rename(path.with_name(f"new-{path.name}"))
    (Path(after) / "_SUCCESS").write_text(json.dumps({"parts": ["new-part-0", "new-part-1"]}))
    with pytest.raises(InputError, match="shares no part with"):
        compare(Store(), before, after)
    for arguments in (["--images"], ["--out", "page.txt"]):
        assert run(["compare", before, after, *arguments]) == 2
    with pytest.raises(ConfigError, match="another archive"):
        compare(Store(), before, other)


def test_parts_of_one_run_alone_and_an_unfinished_run_are_told(make: Make) -> None:
    before, after = make()
    (Path(after) / "parts/part-1.parquet").unlink()
    (Path(after) / "_SUCCESS").unlink()
    found = compare(Store(), before, after)
    assert (found["rows"], len(found["notes"])) == (201, 2)
    assert "after is not finished: compared are the parts there are" in found["notes"][0]
    assert found["notes"][1].startswith(f"{before}: 1\u00a0part left out, of shards")


def test_the_page_shows_all_and_runs_nothing_of_the_archive(make: Make, tmp_path: Path) -> None:
    names = [*HOSTILE, *(f"{place:05}.jpg" for place in range(200 - len(HOSTILE)))]
    changed = SCORES[0].copy()
    called = KNOWN.p_values(changed[: len(HOSTILE)]) <= 0.05
    changed[: len(HOSTILE)] = np.where(called, -3, 9)
    before, after = make(changed, lambda place: HOSTILE[0] if place % 2 else "cat", names=names)
    edit(after, learned=[id_of(f"0.tar#{names[9]}")])
    out = tmp_path / "page.html"
    assert run(["compare", before, after, "--out", str(out)]) == 0
    page = Page(out.read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1
    assert not {"link", "iframe", "object", "embed", "img", "base"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    found = compare(Store(), before, after)
    for text in (
        "Under the threshold before, over it after",
        "AUROC",
        "Unknown images found",
        "flatter it",
        "Bundle before",
    ):
        assert text in page.text
    assert f"{len(HOSTILE)} images of 400 change sides." in page.text
    assert "<script>alert(1)</script>.jpg" in page.text
    assert render(found, None) == out.read_text(encoding="utf-8")


def test_the_images_are_shown_from_the_archive(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=3, images=30)
    run_here(local_job(tmp_path))
    make_bundle(Store(), f"{tmp_path}/other", seed=1)
    run_here(local_job(tmp_path, bundle=f"{tmp_path}/other", output=f"{tmp_path}/after"))
    out = tmp_path / "page.html"
    assert run(["compare", f"{tmp_path}/results", f"{tmp_path}/after", "--out", str(out), "--images"]) == 0
    found = compare(Store(), f"{tmp_path}/results", f"{tmp_path}/after")
    assert found["labelled"]["known"] == 90
    shown = len(found["to_unknown"]) + len(found["to_known"])
    pictures = Page(out.read_text(encoding="utf-8")).all("img")
    assert len(pictures) == shown > 0
    assert all((one["src"] or "").startswith("data:image/jpeg;base64,") for one in pictures)


def test_runs_in_a_bucket_are_compared_into_it(
    make: Make, bucket: str, s3_settings: S3Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = make()
    store = Store(s3_settings)
    for path in (one for uri in (before, after) for one in Path(uri).rglob("*") if one.is_file()):
        store.write(f"{bucket}/{path.relative_to(tmp_path)}", path.read_bytes())
    settings = ["--set", f"store={s3_settings.model_dump_json(exclude_unset=True)}"]
    page = f"{bucket}/page.html"
    assert run(["compare", f"{bucket}/before", f"{bucket}/after", "--out", page, "--json", *settings]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"] == compare(Store(), before, after)["table"]
    assert b"change sides" in store.read(page)
