"""Explanations in an audit and on the command line: what they need, what is missing without it, and what is written."""

import base64
import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradosr.jobs.cli import run
from hostile import tar
from PIL import Image
from tiny import ARCH, local_job, make_bundle, picture, plain, run_here, write_archive

from gradosr.archive.decode import to_input_size
from gradosr.audit import audit
from gradosr.audit.explaining import seen_box
from gradosr.config import AuditSettings, TransformSettings
from gradosr.store import Store


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_archive(Store(), f"{folder}/archive")
    Store().write(f"{folder}/archive/white.tar", tar([("white.png", plain()), ("black.png", plain(0))]))
    run_here(local_job(folder))
    return folder


def audited(folder: Path, out: Path, **settings: Any) -> dict[str, Any]:
    settings = {"bundle": f"{folder}/bundle", "trust": (ARCH,), **settings}
    return audit(Store(), f"{folder}/results", AuditSettings(**settings), out=out)


def gradosr(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(one) for one in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_listed_images_are_explained_and_shown_with_their_heat_map(scored: Path, tmp_path: Path) -> None:
    found = audited(scored, tmp_path)
    items = found["explained"]["items"]
    listed = {row["id"] for row in found["highest"]}
    assert set(items) == listed
    assert listed
    scores = {row["id"]: row["unknown_score"] for row in found["highest"]}
    for name, one in items.items():
        assert one["unknown_score"] == pytest.approx(scores[name], abs=1e-4)
        assert one["said"]
        assert len(base64.b64decode(one["heat_map"]["values"])) == one["heat_map"]["side"] ** 2
        assert one["heat_map"]["box"] == [0, 0, 1, 1]
    assert json.loads((tmp_path / "audit.json").read_text())["explained"] == found["explained"]
    assert "farther from every known class" in (tmp_path / "index.html").read_text()


def test_at_most_so_many_are_explained(scored: Path, tmp_path: Path) -> None:
    assert len(audited(scored, tmp_path, explain=1)["explained"]["items"]) == 1
    assert "explained" not in audited(scored, tmp_path, explain=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"bundle": "nowhere"}, "nowhere: no bundle there"),
        ({"bundle": "other"}, "other: not the bundle that the run was scored with"),
        ({"trust": ()}, f"{ARCH}: not trusted; a bundle imports no code unless"),
    ],
)
def test_an_audit_does_without_explanations_and_says_why(
    settings: dict[str, Any], told: str, scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_bundle(Store(), "other", seed=1)
    found = audited(scored, tmp_path / "out", **settings)
    assert not found.get("explained")
    assert any("no image is explained" in note and told in note for note in found["notes"])
    assert (tmp_path / "out" / "index.html").exists()


def test_an_audit_without_archive_explains_nothing(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "archive")
    about = tmp_path / "moved" / "results" / "run.json"
    about.write_text(about.read_text())
    found = audit(Store(), f"{tmp_path}/moved/results", AuditSettings(bundle=f"{scored}/bundle", trust=(ARCH,)))
    assert "explained" not in found  # without a folder to write into, nothing is read of the archive


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (TransformSettings(resize=32, crop=24), (40, 64)),
        (TransformSettings(resize=(32, 48)), (40, 64)),
        (TransformSettings(crop=32), (64, 128)),
        (TransformSettings(crop=(40, 20)), (40, 40)),
        (TransformSettings(crop=64), (32, 32)),
    ],
)
def test_the_box_is_what_the_classifier_sees(transform: TransformSettings, size: tuple[int, int]) -> None:
    height, width = size
    y, x = torch.meshgrid(torch.linspace(20, 250, height), torch.linspace(20, 250, width), indexing="ij")
    seen = to_input_size(torch.stack([y, x, x]).round().byte(), transform)[:2].float()
    left, top, right, bottom = seen_box(transform, height, width)
    inside = seen[:, seen[0] > 0] if min(left, top) < 0 else seen.flatten(1)
    for values, low, high in ((inside[0], top, bottom), (inside[1], left, right)):
        assert float(values.min()) == pytest.approx(20 + 230 * max(low, 0), abs=8)
        assert float(values.max()) == pytest.approx(20 + 230 * min(high, 1), abs=8)


def test_files_are_explained_on_the_command_line(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("white.png").write_bytes(plain())
    Path("noise.png").write_bytes(picture(7))
    trust = ("--set", f"trust=[{ARCH}]")
    code, out, err = gradosr(capsys, "explain", scored / "bundle", "white.png", "noise.png", "--out", "why", *trust)
    assert (code, err) == (0, "")
    assert out.startswith("white.png\n  over the threshold: unknown score ")
    assert "farther from every known class" in out
    page = Path("why/index.html").read_text()
    assert "Why 2\u00a0images have their scores" in page
    assert page.count('<svg class="large"') == 2
    pictures = list(Path("why").glob("*.png"))
    assert len(pictures) == 2
    for one in pictures:
        with Image.open(one) as opened:
            assert opened.size == (16, 16)
    code, out, _ = gradosr(capsys, "explain", scored / "bundle", "white.png", "--json", *trust)
    (one,) = json.loads(out)
    assert (one["image"], one["is_unknown"]) == ("white.png", True)
    assert sum(part["value"] for part in one["parts"]) == pytest.approx(one["unknown_score"], abs=1e-4)


def test_images_of_a_run_are_explained_by_key(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--run", scored / "results", "--json", "--set", f"trust=[{ARCH}]")
    code, out, err = gradosr(
        capsys, "explain", scored / "bundle", "white.tar#white.png", "00001.tar#00007.png", *arguments
    )
    assert (code, err) == (0, "")
    assert [one["image"] for one in json.loads(out)] == ["white.tar#white.png", "00001.tar#00007.png"]
    code, _, err = gradosr(capsys, "explain", scored / "bundle", "white.tar#gone.png", *arguments)
    assert (code, err) == (4, f"gradosr: {scored}/results: has no image white.tar#gone.png\n")


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("gone.png", None, "no such file"),
        ("text.png", b"no image", "1 of 2 images cannot be explained: text.png: not_an_image"),
        ("half.png", picture(1)[:100], "1 of 2 images cannot be explained: half.png: truncated"),
        ("drawing.jpg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "drawing.jpg: "),
    ],
)
def test_an_image_that_cannot_be_read_is_one_line(
    name: str,
    body: bytes | None,
    told: str,
    scored: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("white.png").write_bytes(plain())
    if body is not None:
        Path(name).write_bytes(body)
    trust = ("--set", f"trust=[{ARCH}]")
    code, out, err = gradosr(capsys, "explain", scored / "bundle", name, "white.png", "--out", "why", *trust)
    assert code == (4 if body is not None else code)
    assert code != 0
    assert told in err
    assert err.count("\n") == 1
    if body is not None:  # the other one is explained all the same
        assert "white.png\n  over the threshold" in out
        assert "Cannot be explained" in Path("why/index.html").read_text()


def test_a_page_shows_nothing_as_markup(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "<script>alert(1)<script>.png"
    Path(name).write_bytes(plain())
    assert run(["explain", str(scored / "bundle"), name, "--out", "why", "--set", f"trust=[{ARCH}]"]) == 0
    page = Path("why/index.html").read_text()
    assert "<script" not in page
    assert "script-src 'none'" in html.unescape(page)
    assert np.asarray(Image.open(io.BytesIO(next(Path("why").glob("*.png")).read_bytes()))).shape == (16, 16, 4)
