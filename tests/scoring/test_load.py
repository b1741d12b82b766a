"""Bundles and detectors in Python: images of every form are scored as a table of results has them."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import ARCH, CLASSES, local_job, make_bundle, picture, rows_of, run_here, write_archive

import gradosr
from gradosr.errors import ConfigError, InputError, NotFound
from gradosr.results.part import schema
from gradosr.store import Store


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> gradosr.Bundle:
    folder = tmp_path_factory.mktemp("bundle")
    make_bundle(Store(), str(folder))
    return gradosr.load(str(folder), trust=(ARCH,), batch_size=4, device="cpu")


def pixels(seed: int) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(picture(seed))))


def test_import_gradosr_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import gradosr;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names;"
        "assert new == {'gradosr'}, new;"
        "assert gradosr.__version__[0].isdigit(); assert {'load', 'fit', 'Detector'} <= set(dir(gradosr));"
        "assert not {'torch', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_form_of_an_image_has_the_score_of_the_job(bundle: gradosr.Bundle, tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    run_here(local_job(tmp_path))
    wanted = [score for (score,) in rows_of(tmp_path / "results").values()]
    for seed in range(6):
        (tmp_path / f"{seed}.png").write_bytes(picture(seed))
    array = pixels(0)
    forms = [
        *[str(tmp_path / "0.png"), tmp_path / "0.png", picture(0), Image.open(tmp_path / "0.png"), array],
        *[torch.from_numpy(array.copy()).permute(2, 0, 1), torch.from_numpy(array / 255).permute(2, 0, 1)],
        np.dstack([array, np.full((16, 16, 1), 7, np.uint8)]),
    ]
    scores = bundle.score(forms).to_arrow()["unknown_score"].to_pylist()
    assert scores == pytest.approx([wanted[0]] * len(forms), rel=1e-4)
    for many in (np.stack([pixels(seed) for seed in range(6)]), (picture(seed) for seed in range(6))):
        assert bundle.score(many).to_arrow()["unknown_score"].to_pylist() == pytest.approx(wanted, rel=1e-4)
    assert [row["unknown_score"] for row in bundle.score(f"{tmp_path}/archive")] == pytest.approx(wanted, rel=1e-4)


def test_sizes_may_be_mixed_and_one_image_is_an_image(bundle: gradosr.Bundle) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 50, 3), dtype=np.uint8) for height in (1, 16, 300)]
    scored = bundle.score([*images, images[0][:, :, 0]])
    assert scored.to_arrow()["height"].to_pylist() == [1, 16, 300, 1]
    assert set(scored.to_arrow()["status"].to_pylist()) == {"ok"}
    assert len(bundle.score(images[1])) == len(bundle.score(picture(0))) == 1
    assert len(bundle.score([])) == 0


def test_a_result_is_a_table_and_shows_itself(bundle: gradosr.Bundle) -> None:
    scored = bundle.score([picture(seed) for seed in range(20)] + [b"no image"])
    assert (len(scored), scored[-1]["status"], scored[-1]["unknown_score"]) == (21, "not_an_image", None)
    assert scored[3]["open_set_class"] in (*CLASSES, "unknown")
    assert [row["key"] for row in scored[2:5]] == ["2", "3", "4"]
    kinds = {one.name: one.type for one in schema()}
    assert {one.name: one.type for one in scored.to_arrow().schema}.items() <= kinds.items()
    unknown = sum(row["is_unknown"] or False for row in scored)
    assert repr(scored) == f"<gradosr.Scored 21 images, {unknown} unknown, 1 without a score>"
    shown = scored._repr_html_()
    assert shown.count("data:image/jpeg;base64,") == 12
    highest = max(range(20), key=lambda place: scored[place]["unknown_score"])
    assert f"<td>{highest}</td>" in shown
    assert "3 classes (cat, dog, ship), detector one_class" in repr(bundle)


def test_a_hostile_name_is_text_in_html(bundle: gradosr.Bundle, tmp_path: Path) -> None:
    (tmp_path / "<b>x.png").write_bytes(picture(0))
    assert "<b>" not in bundle.score(str(tmp_path / "<b>x.png"))._repr_html_()


def test_to_pandas(bundle: gradosr.Bundle) -> None:
    pytest.importorskip("pandas")
    assert bundle.score([picture(0)]).to_pandas()["predicted_class"].isin(CLASSES).all()


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (3, TypeError, "image 0: int is no image, path, bytes, array or tensor"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"image 0: shape \[4, 4, 2\]; expected \[height, width, 3\]"),
        (np.full((4, 4, 3), -1.0), ValueError, "image 0: values beyond 0..1"),
        (np.zeros((4, 4, 3), np.int64), ValueError, "image 0: torch.int64; expected uint8"),
        ("nowhere.png", NotFound, "nowhere.png"),
    ],
)
def test_what_is_no_image_is_told(bundle: gradosr.Bundle, image: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bundle.score([image])


# --- Detectors over arrays ---


def clouds(seed: int, centre: float, images: int = 300) -> tuple[Any, Any, Any]:
    """Features, labels and logits of three Gaussian classes; `centre` moves them all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, images)
    features = rng.normal(size=(images, 8)) + 6 * np.eye(8)[labels] + centre * np.eye(8)[7]
    return features, labels, features @ WEIGHT.T


WEIGHT = np.eye(8)[:3]


@pytest.mark.parametrize("kind", ["knn", "mahalanobis", "rmd", "vim", "scale"])
def test_a_detector_over_features_finds_what_lies_elsewhere(kind: str) -> None:
    features, labels, logits = clouds(0, 0)
    detector = gradosr.Detector(kind).fit(features, labels, logits=logits, weight=WEIGHT)
    known, far = clouds(1, 0), clouds(2, 12)
    alarms = detector.predict(known[0], known[2]).mean()
    assert alarms < 0.15
    if kind not in ("scale", "rmd"):  # which look at the largest features, or at what tells the classes apart
        assert detector.predict(far[0], far[2]).mean() > 0.9
    assert detector.p_values(known[0], known[2]).dtype == np.float32


@pytest.mark.parametrize("kind", ["msp", "max_logit", "energy", "gen", "openmax"])
def test_a_detector_over_logits_finds_what_is_not_sure(kind: str) -> None:
    _, labels, logits = clouds(0, 0)
    detector = gradosr.Detector(kind, false_alarm_rate=0.1).fit(labels=labels, logits=logits)
    unsure = np.random.default_rng(3).normal(size=(200, 3)) / 10
    assert detector.score(logits=unsure).mean() > detector.score(logits=logits).mean()


def test_mistakes_about_arrays_are_told() -> None:
    features, labels, logits = clouds(0, 0)
    for call, message in (
        (lambda: gradosr.Detector("gaia_z"), "not a detector over arrays"),
        (lambda: gradosr.Detector("knn").score(features), "fit it first"),
        (lambda: gradosr.Detector("knn").fit(logits=logits), "knn: needs features"),
        (lambda: gradosr.Detector("msp").fit(features), "msp: needs logits"),
        (lambda: gradosr.Detector("mahalanobis").fit(features), "needs labels"),
        (lambda: gradosr.Detector("vim").fit(features, labels, logits=logits), "vim: needs weight"),
        (lambda: gradosr.Detector().fit(features[:, 0]), r"shape \[300\]; expected one row per image"),
        (lambda: gradosr.Detector().fit(features * np.nan), "not finite"),
        (lambda: gradosr.Detector().fit(features, labels[:5]), "5 labels of 300 images"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()
    with pytest.raises(InputError, match="needs at least 19"):
        gradosr.Detector().fit(features[:20])


def test_a_detector_over_arrays_may_be_calibrated_per_class() -> None:
    features, labels, logits = clouds(0, 0, 600)
    spread = features * (1 + 2 * (labels == 2))[:, None]  # images of one class lie farther apart
    others, of, their_logits = clouds(1, 0, 600)
    others = others * (1 + 2 * (of == 2))[:, None]
    alarms = {
        per_class: [
            gradosr.Detector("mahalanobis", per_class=per_class, false_alarm_rate=0.1)
            .fit(spread, labels, logits=logits)
            .predict(others[of == k], their_logits[of == k])
            .mean()
            for k in range(3)
        ]
        for per_class in (False, True)
    }
    assert max(alarms[False]) > 0.2 > min(alarms[True]) > 0.03
    assert max(alarms[True]) < 0.2
    with pytest.raises(ConfigError, match="knn: needs logits"):
        gradosr.Detector("knn", per_class=True).fit(features, labels)
