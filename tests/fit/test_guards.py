"""A fit that its user cannot have meant is told, with numbers."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_jobs import fit_document, gradosr, write
from tiny import CLASSES, picture, plain
from torch import Tensor, nn

import gradosr as gradosr_package
from gradosr.config import FitJob
from gradosr.errors import ConfigError, InputError
from gradosr.fit.guards import Calls, accuracy_warnings, check_names, setting_warnings


class Brightness(nn.Module):
    """Tells dark, grey and bright images apart, whatever its weights."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        features = torch.stack([(level < 0.3).float(), ((level - 0.5).abs() < 0.2).float(), (level > 0.7).float()], 1)
        return self.head(features + 0.05 * x.amax((2, 3)))


def sure(num_classes: int) -> Brightness:
    return Brightness(num_classes)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """A fit job with a classifier that is always right, on pictures of three levels of grey with some noise."""
    net = Brightness(3)
    with torch.no_grad():
        net.head.weight.copy_(8 * torch.eye(3))
        net.head.bias.zero_()
    save_file(net.state_dict(), tmp_path / "sure.safetensors")
    for seed in range(120):
        place = tmp_path / "photos" / CLASSES[seed % 3] / f"{seed:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(plain((seed % 3) * 100 + 5 + seed // 4))
    return {
        "classifier": {
            "arch": "test_guards:sure",
            "args": {"num_classes": 3},
            "weights": f"{tmp_path}/sure.safetensors",
            "classes": list(CLASSES),
            "transform": {"resize": [16, 16], "mean": [0, 0, 0], "std": [1, 1, 1]},
        },
        "input": {"kind": "images", "uri": f"{tmp_path}/photos"},
        "held_out": 1,
        "detector": {"kind": "max_logit"},
        "bundle": f"{tmp_path}/bundle",
    }


def told(capsys: pytest.CaptureFixture[str], folder: Path, document: dict[str, Any], *words: str) -> tuple[int, str]:
    code, _, err = gradosr(capsys, "fit", write(folder / "fit.yaml", document), *words)
    return code, err


def test_a_fit_that_is_right_warns_of_nothing(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = told(capsys, tmp_path, document)
    assert code == 0, err
    assert "closed-set accuracy on 120 held-out images: 1.0000" in err
    assert "accuracy by class: cat 1.0000, dog 1.0000, ship 1.0000" in err
    for word in ("left out", "no image", "hardly", "exchanged", "transform says"):
        assert word not in err


def test_a_bundle_is_made_in_python_by_the_words_of_a_config(document: dict[str, Any], tmp_path: Path) -> None:
    photos = document.pop("input")["uri"]
    del document["classifier"]["classes"], document["held_out"]
    bundle = gradosr_package.fit(photos, **document)
    assert bundle.classes == CLASSES
    scored = bundle.score(f"{photos}/dog")
    assert ({row["predicted_class"] for row in scored}, len(scored)) == ({"dog"}, 40)
    with pytest.raises(ConfigError, match="a bundle is there already; name another folder, or replace it with force=T"):
        gradosr_package.fit(photos, **document)
    assert gradosr_package.fit(photos, **document, force=True).classes == CLASSES
    with pytest.raises(ConfigError, match=r"gradosr\.fit: bundel: unknown key; did you mean bundle\?"):
        gradosr_package.fit(photos, **{"bundel" if key == "bundle" else key: value for key, value in document.items()})


def test_exchanged_names_are_refused_with_the_order_that_fits(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["classifier"]["classes"] = ["dog", "cat", "ship"]
    code, err = told(capsys, tmp_path, document)
    assert code == 4
    last = err.splitlines()[-1]
    assert "names look exchanged: 100 % of dog are called cat, 100 % of cat are called dog" in last
    assert "[cat, dog, ship], with accuracy 1.0000 instead of 0.3" in last
    assert not (tmp_path / "bundle" / "bundle.json").exists()
    code, err = told(capsys, tmp_path, document, "--force")
    assert code == 0, err
    assert "is hardly above chance" in err


def test_a_class_without_an_image_and_images_left_out_are_counted(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos" / "ship").rename(tmp_path / "photos" / "Ships")
    (tmp_path / "photos" / "cat" / "broken.png").write_bytes(b"nothing")
    (tmp_path / "photos" / "loose.png").write_bytes(picture(0))
    code, err = told(capsys, tmp_path, document)
    assert code == 0, err
    lines = err.splitlines()
    assert "no image of 1 of 3 classes: ship" in lines
    assert "left out 40 of 122 images: their labels are none of the classes (40 Ships)" in lines
    assert "left out 1 of 122 images: they have no label" in lines
    assert "left out 1 of 122 images: they cannot be decoded" in lines


def test_images_that_nothing_uses_are_counted(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = told(capsys, tmp_path, document | {"held_out": 0.7})
    assert code == 0, err
    found = re.search(r"left out (\d+) of 120 images: held_out is 0.7 and this job trains nothing; held_out: 1", err)
    assert found
    assert 15 < int(found[1]) < 60


def test_no_image_of_any_class_names_the_labels(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document["classifier"]["classes"] = ["Cat", "Dog", "Ship"]
    code, err = told(capsys, tmp_path, document)
    assert code == 4
    assert "labels found: 40 cat, 40 dog, 40 ship" in err.splitlines()[-1]


def test_a_network_of_ones_own_states_its_mean(tmp_path: Path) -> None:
    document = fit_document(tmp_path)
    assert setting_warnings(FitJob.model_validate(document)) == []
    document["classifier"]["transform"] = {"resize": [16, 16]}
    (warning,) = setting_warnings(FitJob.model_validate(document))
    assert "says no mean and no std, so those of ImageNet are taken (mean [0.485, 0.456, 0.406], std" in warning
    document["classifier"]["arch"] = "torchvision:resnet18"
    assert setting_warnings(FitJob.model_validate(document)) == []


def counted(matrix: list[list[int]]) -> Calls:
    """Counts by label (rows) and predicted class."""
    return Counter({(i, j): number for i, row in enumerate(matrix) for j, number in enumerate(row) if number})


def test_accuracies_are_judged_by_their_number_of_images() -> None:
    assert accuracy_warnings(counted([[50, 0], [0, 50]]), 2, 0.99) == []
    assert "hardly above chance, 0.5000" in accuracy_warnings(counted([[30, 20], [22, 28]]), 2, None)[0]
    assert "far below the 0.95" in accuracy_warnings(counted([[40, 10], [12, 38]]), 2, 0.95)[0]
    assert accuracy_warnings(counted([[8, 2], [1, 9]]), 2, 0.9) == []  # 20 images cannot tell


@pytest.mark.parametrize(
    "counts",
    [
        [[9, 1, 0], [0, 9, 1], [1, 0, 9]],
        [[1, 9, 0], [0, 9, 1], [0, 9, 1]],  # everything is called one name
        [[0, 2, 0], [2, 0, 0], [0, 0, 9]],  # too few images
        [[4, 5, 0], [0, 9, 1], [1, 0, 9]],  # one class is called another, which is called itself
    ],
)
def test_other_confusions_are_no_exchange(counts: list[list[int]]) -> None:
    check_names(counted(counts), CLASSES)


def test_a_shift_of_all_names_is_an_exchange() -> None:
    with pytest.raises(InputError, match=re.escape("[ship, cat, dog], with accuracy 0.9000 instead of 0.1000")):
        check_names(counted([[1, 9, 0], [0, 1, 9], [9, 0, 1]]), CLASSES)
