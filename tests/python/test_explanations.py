"""Explanations in Python: the words and figures of `gradosr explain`, for images of every form."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradosr.jobs.cli import run
from PIL import Image
from tiny import ARCH, make_bundle, picture, plain

import gradosr
from gradosr.config import ComputeSettings
from gradosr.errors import BundleError, NotFound
from gradosr.store import Store

HOSTILE = "<b>\u202eevil\x1b[31m.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(Store(), str(folder))
    return folder


@pytest.fixture(scope="module")
def bundle(place: Path) -> gradosr.Bundle:
    return gradosr.load(str(place), trust=(ARCH,), batch_size=4, device="cpu")


def wide_jpeg() -> bytes:
    """An image of 60 x 30 pixels that its EXIF orientation turns upright."""
    image, body = Image.open(io.BytesIO(picture(3))).resize((60, 30)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(body, "JPEG", exif=exif)
    return body.getvalue()


def test_words_and_figures_are_those_of_the_command(
    bundle: gradosr.Bundle, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    bodies = {"white.png": plain(), "noise.png": picture(7), "turned.jpg": wide_jpeg(), "text.png": b"no image"}
    for name, body in bodies.items():
        Path(name).write_bytes(body)
    words = ["explain", str(place), *bodies, "--set", f"trust=[{ARCH}]", "--set", "device=cpu"]
    explained = bundle.explain(list(bodies))
    assert run(words) == 4
    assert f"{explained}\n" == capsys.readouterr().out
    assert run([*words, "--json"]) == 4
    wanted = json.loads(capsys.readouterr().out)
    assert [near(one) for one in json.loads(json.dumps(list(explained)))] == [near(one) for one in wanted]


def near(document: Any) -> Any:
    """Round the figures of a document: a batch of another size adds up in another order."""
    if isinstance(document, dict):  # of the heat map's values in base64, single steps may differ
        return {name: near(value) for name, value in document.items() if name != "values"}
    if isinstance(document, list):
        return [near(value) for value in document]
    return pytest.approx(document, abs=1e-4) if isinstance(document, float) else document


def test_an_image_of_every_form_has_one_explanation(bundle: gradosr.Bundle, tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(picture(seed))
    array = np.asarray(Image.open(tmp_path / "0.png"))
    forms = [
        *[str(tmp_path / "0.png"), tmp_path / "0.png", picture(0), Image.open(tmp_path / "0.png"), array],
        torch.from_numpy(array.copy()).permute(2, 0, 1),
    ]
    (wanted,) = bundle.score(forms[0])
    for one in bundle.explain(forms):
        assert one["unknown_score"] == pytest.approx(wanted["unknown_score"], rel=1e-4)
        assert sum(part["value"] for part in one["parts"]) == pytest.approx(one["unknown_score"], abs=1e-4)
    assert [one["image"] for one in bundle.explain(str(tmp_path))] == ["0.png", "1.png", "2.png"]
    assert len(bundle.explain(array)) == len(bundle.explain(forms[0])) == 1
    assert len(bundle.explain([])) == 0
    with pytest.raises(TypeError, match="image 0: int is no image"):
        bundle.explain([3])  # type: ignore[list-item]
    with pytest.raises(NotFound, match=r"nowhere\.png"):
        bundle.explain("nowhere.png")


def test_explanations_show_themselves(bundle: gradosr.Bundle) -> None:
    explained = bundle.explain([plain(), *(picture(seed) for seed in range(14)), b"no image"])
    over = sum(one.get("is_unknown", False) for one in explained)
    assert repr(explained) == (f"<gradosr.Explanations 16 images, {over} over the threshold, 1 without an explanation>")
    shown = explained._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 2 * 12  # each as it is, and with its heat map
    assert "farther from every known class" in shown
    assert "Heat map: red where the score comes from most." in shown
    assert explained[1:3][1]["image"] == "2"
    assert "cannot be explained: not_an_image" in explained[-1:]._repr_html_()


def test_names_of_files_are_text_in_html(bundle: gradosr.Bundle, tmp_path: Path) -> None:
    (tmp_path / HOSTILE).write_bytes(plain())
    (tmp_path / f"text {HOSTILE}").write_bytes(b"no image")
    for shown in (bundle.explain(str(tmp_path))._repr_html_(), bundle.score(str(tmp_path))._repr_html_()):
        assert "evil" in shown
        assert not [mark for mark in ("<b>", "\u202e", "\x1b") if mark in shown]
    printed = str(bundle.explain(str(tmp_path)))
    assert not [mark for mark in ("\u202e", "\x1b") if mark in printed]


def test_a_data_frame_has_a_row_per_image_and_a_column_per_part(bundle: gradosr.Bundle) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = bundle.explain([plain(), b"no image"]).to_pandas()
    parts = frame[["max_logit", "gradients", "scale", "middle"]].fillna(0)
    assert len(frame) == 2
    assert parts.sum(axis=1)[0] <= frame["unknown_score"][0]
    assert "farther from every known class" in frame["said"][0]
    assert frame["error"][1].startswith("not_an_image")
    assert list(bundle.explain([]).to_pandas()["image"]) == []


def test_an_image_without_a_finite_score_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = "tiny_net:bursting"
    make_bundle(Store(), "bundle", arch=arch)
    Path("white.png").write_bytes(plain())
    fault = "non_finite: a logit or a gradient norm is not a finite number"
    assert gradosr.load("bundle", trust=(arch,)).explain("white.png")[0] == {"image": "white.png", "error": fault}
    assert run(["explain", "bundle", "white.png", "--json", "--set", f"trust=[{arch}]"]) == 4
    said = capsys.readouterr()
    assert json.loads(said.out) == [{"image": "white.png", "error": fault}]
    assert f"cannot be explained: white.png: {fault}" in said.err


def test_a_bundle_that_was_replaced_is_refused(tmp_path: Path) -> None:
    make_bundle(Store(), str(tmp_path))
    loaded = gradosr.load(str(tmp_path), trust=(ARCH,))
    make_bundle(Store(), str(tmp_path), seed=1)
    with pytest.raises(BundleError, match="replaced since it was loaded; load it again"):
        loaded.explain(plain())


def test_a_bundle_without_a_place_explains_without_comparing(tmp_path: Path) -> None:
    bundle = gradosr.Bundle(make_bundle(Store(), str(tmp_path)), ComputeSettings(device="cpu"))
    assert bundle.explain(plain())[0]["said"][0].startswith("The bundle keeps nothing of its held-out images")
