"""The page and the lists for labelling, on a real little archive with names as hostile as they come."""

import copy
import csv
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from audit_document import HOSTILE, Archive
from PIL import Image
from pyarrow import parquet

from gradosr.audit import export, report, text, words
from gradosr.audit.pictures import Picture, Pictures, fetch, rows_of
from gradosr.store import Store


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(tmp_path_factory.mktemp("audit"))


@pytest.fixture(scope="module")
def pictures(archive: Archive) -> Pictures:
    return fetch(Store(), archive.source, rows_of(archive.document))


@pytest.fixture(scope="module")
def page(archive: Archive, pictures: Pictures) -> str:
    return report.write(archive.document, pictures, archive.out).read_text(encoding="utf-8")


@pytest.fixture
def document(archive: Archive) -> dict[str, Any]:
    return copy.deepcopy(archive.document)


class Page(HTMLParser):
    """Tags and text; script and style apart."""

    VOID = {"meta", "img", "input", "br", "rect", "line", "path", "circle", "image"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.stack, self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split()).replace(" ", " ")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


def shown(document: dict[str, Any], pictures: Pictures | None = None) -> str:
    return Page(report.render(document, pictures or Pictures())).text


# The whole page


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} & {"link", "iframe", "object", "embed", "base", "video"} == set()
    for tag, attributes in parsed.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag  # the policy would refuse it
            if name in ("src", "href", "action", "srcset", "data"):
                assert (value or "").startswith(("data:image/jpeg;base64,", "#")), (tag, name, value)
    assert [tag.get("type") for tag in parsed.all("script")] == ["application/json", None]
    assert len(parsed.all("style")) == 1


def test_the_policy_admits_our_own_style_and_script_alone(page: str) -> None:
    (policy,) = [tag["content"] or "" for tag in Page(page).all("meta") if tag.get("http-equiv")]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[rule] == f"'{report._hash(content)}'"
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_hostile_names_are_only_text(page: str, archive: Archive) -> None:
    parsed = Page(page)
    assert "<script>alert(1)</script>.jpg" in parsed.text
    assert "onerror=alert(1)" in parsed.text
    assert "{{ 7 * 7 }} {% raw %}" in parsed.text
    assert not any(tag["src"] == "x" for tag in parsed.all("img"))
    everything = page.partition("<script>")[0]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", everything)
    assert r"\u202egpj.exe\u2066" in parsed.text
    assert max(len(word) for word in parsed.text.split()) < 400  # a name of 3,000 letters is cut in its middle
    assert "\u0335\u0336\u0337" * 2 not in page


def test_every_picture_stands_beside_its_key(page: str, archive: Archive, pictures: Pictures) -> None:
    assert pictures.shown == 81
    assert page.count("data:image/jpeg;base64,") >= pictures.shown
    assert "18 no longer in the archive; 2 could not be decoded; 1 too large for a picture" in Page(page).text
    for row in archive.document["highest"]:
        assert text.foreign(row["key"], 120) in page


def test_images_have_words_and_sizes_and_tables_have_heads(page: str) -> None:
    parsed = Page(page)
    assert all(tag.get("alt") and tag.get("width") and tag.get("height") for tag in parsed.all("img"))
    assert all(tag.get("scope") == "col" for tag in parsed.all("th"))
    assert all(tag.get("aria-label") or tag.get("aria-hidden") for tag in parsed.all("svg"))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.tags:
        for name in ("aria-labelledby", "data-for"):
            assert attributes.get(name) is None or attributes[name] in ids
        if (attributes.get("href") or "").startswith("#"):
            assert (attributes["href"] or "")[1:] in ids
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_says_what_the_document_says(page: str) -> None:
    said = Page(page).text
    for line in (
        "About 4.7 % of this archive is unknown to the classifier.",
        "The 95 % interval is 4.4 % to 5.1 %: 3,704 to 4,250 of the 84,000 images with a score.",
        "at least 4.5 % with 95 % confidence, whatever the unknown images look like; it is one-sided",
        "2,146 images are flagged: on average at most 10 % of them, here about 215, are known after all.",
        "Over the threshold7,310 (8.7 %). The threshold lets 5 % of known images pass: 4,200, were all known.",
        "All 7,310 images over the threshold were compared with each other: 2,632 look alike in clusters, 412 look",
        "look like a known class, 4,266 are like no other.",
        "1,834 images, most like airplane",
        "About 77 of them (11 %) would be there by false alarm alone.",
        "Labels in the archive: digits 50 %",
        "Dated 2026-08-01 to 2026-10-29.",
        "412 images over the threshold that look like a known class",
        "Look at these 3 clusters. They hold 2,632 images that look alike.",
        "Label 730 images. That halves the interval by labels, now 3.1 % to 7.6 %.",
        "gradosr label s3://results/archive-2026/ --next 730 --out to-label/",
        "Take the 2,146 flagged images. They are in flagged.csv",
        "by_shard: 60 of 72 shards are listed, the worst first",
        "not a tar archive: <b>empty</b> file",
        "300 truncated, 110 not_an_image, 2 too_large.",
        "The share over the threshold rose from 6.1 % to 8.7 %.",
        "12,400 appeared, 31 vanished",
    ):
        assert line in said, line


# What cannot be said


def test_no_calibration_gives_no_figure_and_the_reason(document: dict[str, Any]) -> None:
    document["prevalence"] |= dict.fromkeys(("estimate", "low", "high", "lower_bound", "method", "tuning"))
    document["prevalence"]["reason"] = "the bundle has no calibration; fit it again with held-out images"
    document["calibration"] = document["false_alarm_rate"] = document["histograms"]["unknown_score"]["calibration"] = (
        None
    )
    document["flags"] |= {
        "count": 0, "expected_false": 0.0, "smallest_p_value": None, "calibration_images": None,
        "reason": "without calibration there are no p-values",
    }  # fmt: skip
    said = shown(document)
    assert "How much of this archive is unknown to the classifier cannot be said." in said
    assert "The bundle has no calibration; fit it again with held-out images." in said
    assert "known after all: without calibration there are no p-values." in said
    assert "Calibration none in the bundle" in re.sub(r"\s+", " ", said).replace("Calibrationnone", "Calibration none")


def test_a_calibration_that_certifies_nothing_is_told_with_the_reason(document: dict[str, Any]) -> None:
    document["flags"] |= {
        "count": 0, "expected_false": 0.0, "smallest_p_value": 1 / 501, "calibration_images": 500,
        "reason": "no p-value is small enough",
    }  # fmt: skip
    said = shown(document)
    told = (
        "No image can be flagged so that at most 10 % of the flagged are known after all: no p-value is small enough."
    )
    assert told in said
    assert "no p-value is below 0.0020" in said
    assert "Images with the highest unknown scores" in said
    assert "flagged.csv" not in said.partition("What to do next")[2].partition("Clusters")[0]


def test_an_interval_that_reaches_zero_claims_nothing(document: dict[str, Any]) -> None:
    document["prevalence"] |= {"estimate": 0.002, "low": 0.0, "high": 0.011, "lower_bound": 0.0}
    said = shown(document)
    assert "This archive scores like known images: at most 1.1 % of it is unknown to the classifier, unless" in said
    assert "that any image is unknown cannot be shown" in said


def test_an_empty_or_bare_audit_is_a_page_as_well(document: dict[str, Any]) -> None:
    document |= {
        "images": 0, "rows": 0, "unknown": 0, "unknown_rate": None, "by_prefix": [], "by_predicted_class": [],
        "by_shard": [], "by_day": [], "highest": [], "quarantined": [], "bad_images": [], "baseline": None, "notes": [],
        "statuses": {}, "map": None, "explained": None, "known_images": {}, "nearest_known": {},
    }  # fmt: skip
    document["groups"] |= {
        "items": [],
        "look_alikes": [],
        "reason": "the run stored no features; score with features: unknown",
    }
    document["prevalence"] |= dict.fromkeys(("estimate", "low", "high", "lower_bound", "method", "tuning"))
    document["flags"] |= {"count": 0}
    document["histograms"]["unknown_score"] = {"edges": [0.0, 0.0], "archive": [0], "calibration": None}
    document["histograms"]["p_value"] = {"edges": [0.0, 1.0], "archive": [0]}
    said = shown(document)
    assert "No image of this archive has a score" in said
    assert "The run stored no features; score with features: unknown." in said
    assert "Nothing: every image of every shard has a score." in said
    assert "What to do next" not in said


@pytest.mark.parametrize("flagged", [1, 2])
def test_one_is_not_many(document: dict[str, Any], flagged: int) -> None:
    document["flags"] |= {"count": flagged, "expected_false": 0.1 * flagged}
    assert f"{flagged} image {'is' if flagged == 1 else ''}".split()[1] in words.flags(document)
    assert "fewer than 1" in words.flags(document)


def test_no_more_than_chance_is_said_so(document: dict[str, Any]) -> None:
    document["baseline"]["unknown_rate_change"]["adjusted_p_value"] = 0.4
    assert "no more than chance explains" in shown(document)


# Words and figures


@pytest.mark.parametrize(
    ("share", "written"),
    [(None, text.NONE), (0, "0 %"), (0.05, "5 %"), (0.0472, "4.7 %"), (0.1234, "12.3 %"), (1, "100 %"),
     (0.00032, "0.032 %"), (0.0031, "0.31 %"), (1e-9, "< 0.001 %"), (-0.0123, "\u22121.2 %"), (0.99999, "100.0 %")],
)  # fmt: skip
def test_percents(share: float | None, written: str) -> None:
    assert text.percent(share).replace(text.NBSP, " ") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, text.NONE),
        (0, "0"),
        (1.0, "1"),
        (0.07, "0.070"),
        (0.5, "0.50"),
        (2.1e-5, "0.000021"),
        (7e-12, "7.0\u00d710\u207b\u00b9\u00b2"),
    ],
)
def test_p_values(value: float | None, written: str) -> None:
    assert text.p_value(value) == written


def test_foreign_text_is_short_escaped_and_isolated() -> None:
    assert str(text.foreign("a<b>&\"'")) == '<bdi dir="ltr" class="foreign">a&lt;b&gt;&amp;&#34;&#39;</bdi>'
    long = text.foreign("x" * 10_000 + "\u202e" + "y" * 10_000 + ".jpg")
    assert len(long) < 1_500
    assert long.endswith("yyyy.jpg</bdi>")
    assert "\u202e" not in text.neutral("\u202e\udc80\u2066\x1b\u2028")
    assert text.neutral("naïve שלום 日本 é") == "naïve שלום 日本 é"
    assert text.ending("cam/2026.tar#a/b/0001.jpg", 10).startswith("<bdi")


# The exports


@pytest.fixture(scope="module")
def exported(archive: Archive, pictures: Pictures) -> Path:
    assert export.write(archive.out / "flagged.parquet", pictures, ["cat", '<dog> & "co"']) == {
        "rows": 100,
        "pictured": 81,
    }
    return archive.out


def test_the_csv_holds_every_row_and_no_formula(exported: Path, archive: Archive) -> None:
    with (exported / "flagged.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [row["id"] for row in archive.document["highest"]]
    labels = {row["label"] for row in rows}
    assert "'" + HOSTILE[3] in labels
    assert not any(value.startswith(("=", "@", "\t", "\r", "+")) for row in rows for value in row.values())


@pytest.mark.parametrize(
    "value", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1", "\u00a0\v=1", "\tx", "\uff1d1", "=", "-"]
)  # fmt: skip
def test_no_cell_can_become_a_formula(value: str) -> None:
    assert export.cell(value) == "'" + value


@pytest.mark.parametrize("value", ["a=1", "", "'", "1", "<script>", 'a"b', "a;=1"])
def test_other_cells_stay_as_they_are(value: str) -> None:
    assert export.cell(value) == value
    assert export.cell(None) == ""
    assert export.cell(-0.5) == "-0.5"


def test_pictures_are_named_by_their_hash(exported: Path, pictures: Pictures) -> None:
    files = sorted((exported / "images").iterdir())
    assert len(files) == 81
    assert all(re.fullmatch(r"[0-9a-f]{16}\.jpg", path.name) for path in files)
    assert {Image.open(io.BytesIO(path.read_bytes())).format for path in files} == {"JPEG"}


def test_label_studio_tasks_carry_their_picture(exported: Path) -> None:
    tasks = json.loads((exported / "labelstudio.json").read_text(encoding="utf-8"))
    assert len(tasks) == 81
    for task in tasks:
        assert set(task) == {"data"}
        assert task["data"]["image"].startswith("data:image/jpeg;base64,")
        assert (exported / task["data"]["image_file"]).is_file()
    form = (exported / "labelstudio.xml").read_text(encoding="utf-8")
    assert '<Choice value="none of these"/>' in form
    assert "&lt;dog&gt; &amp;" in form
    assert re.findall(r'value="\$(\w+)"', form) == ["image", "about"]


def test_fiftyone_samples_fit_their_schema(exported: Path) -> None:
    dataset = json.loads((exported / "fiftyone.json").read_text(encoding="utf-8"))
    assert dataset["media_type"] == "image"
    own = {"filepath", "tags", "metadata", "_media_type"}
    for sample in dataset["samples"]:
        assert set(sample) - own == set(dataset["sample_fields"])
        assert (exported / sample["filepath"]).is_file()
        assert sample["predicted"]["_cls"] == "Classification"


def test_exporting_again_leaves_nothing_of_the_earlier_audit(tmp_path: Path) -> None:
    def row(i: int) -> dict[str, Any]:
        return {**dict.fromkeys(export.COLUMNS), "id": f"{i:016x}", "key": f"../../{i}", "predicted_class": "cat"}

    def run(numbers: range) -> set[str]:
        parquet.write_table(pa.Table.from_pylist([row(i) for i in numbers]), tmp_path / "flagged.parquet")
        export.write(
            tmp_path / "flagged.parquet", Pictures({row(i)["id"]: Picture(row(i)["id"], b"t", b"l") for i in numbers})
        )
        return {path.name for path in (tmp_path / "images").iterdir()}

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.txt").write_text("")
    assert run(range(3)) == {f"{i:016x}.jpg" for i in range(3)} | {"mine.txt"}
    assert run(range(2, 4)) == {f"{i:016x}.jpg" for i in (2, 3)} | {"mine.txt"}


def test_an_id_that_is_a_path_goes_nowhere(tmp_path: Path) -> None:
    wrong = {**dict.fromkeys(export.COLUMNS), "id": "../x", "key": "k"}
    parquet.write_table(pa.Table.from_pylist([wrong]), tmp_path / "flagged.parquet")
    with pytest.raises(ValueError, match="not an id"):
        export.write(tmp_path / "flagged.parquet", Pictures({"../x": Picture("../x", b"t", b"l")}))


def test_rows_for_pictures_come_from_the_flagged(exported: Path) -> None:
    assert [row["id"] for row in export.flagged_rows(exported / "flagged.parquet", 3)] == [
        row["id"] for row in export.flagged_rows(exported / "flagged.parquet")
    ][:3]
