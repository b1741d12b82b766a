"""Classifiers from where users keep them: folders, and the transforms that libraries state of their weights."""

import io
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageFilter
from test_classifier import refused
from tiny import picture
from torch import Tensor
from torchvision import models

from gradosr.archive.decode import to_input_size
from gradosr.bundle.bundle import load_bundle
from gradosr.classifier.architectures import LIBRARIES
from gradosr.classifier.architectures.transformers import of_processor
from gradosr.classifier.build import build_classifier, normalise
from gradosr.classifier.resolve import bring, complete
from gradosr.config import LIBRARIES as NAMED
from gradosr.config import CompleteFitJob, FitJob, ImagesInput, TransformSettings
from gradosr.errors import ClassifierError, ConfigError, NotFound
from gradosr.fit.fitting import fit
from gradosr.run.console import Notes
from gradosr.store import Store

CLASSES = ("cat", "dog", "ship")


def photo(height: int = 311, width: int = 457) -> Image.Image:
    """Smooth and sharp in places, as photos are."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[: height // 2, : width // 3] = (250, 30, 120)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5))


def ours(image: Image.Image, transform: TransformSettings) -> Tensor:
    """Return the classifier's input for an image, [3, h, w]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return normalise(to_input_size(pixels, transform)[None], transform)[0]


def assert_same_pixels(found: Tensor, expected: Tensor, transform: TransformSettings) -> None:
    """Within one grey level; within two for one pixel in 10,000, as Pillow and torch round when bicubic enlarges."""
    assert found.shape == expected.shape
    levels = (found - expected).abs() * torch.tensor(transform.std).view(3, 1, 1) * 255
    assert levels.max() <= 2.01
    assert (levels > 1.01).float().mean() <= 1e-4


def fit_job(**classifier: object) -> FitJob:
    return FitJob.model_validate(
        {
            "classifier": {"classes": CLASSES, "weights": "w.pt", **classifier},
            "input": {"kind": "images", "uri": "images"},
            "detector": {"kind": "one_class"},
            "bundle": "bundle",
        }
    )


def completed(notes: Notes | None = None, **classifier: object) -> CompleteFitJob:
    return complete(fit_job(**classifier), Store(), (notes or Notes()).say)


def test_the_libraries_that_need_no_trust_are_the_libraries():
    assert set(NAMED) == set(LIBRARIES)


# --- Transforms ---


@pytest.mark.parametrize(
    "name", ["resnet50", "vit_l_16", "swin_t", "swin_v2_t", "efficientnet_b0", "efficientnet_v2_m", "inception_v3"]
)
def test_a_transform_left_out_is_the_preset_of_torchvisions_default_weights(name):
    transform = completed(arch=f"torchvision:{name}").classifier.transform
    preset = models.get_model_weights(name).DEFAULT.transforms()
    for image in (photo(), photo(457, 311), photo(90, 70)):
        assert_same_pixels(ours(image, transform), preset(image), transform)


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_transform_of_torchvision_can_be_said(name):
    preset = models.get_model_weights(name).DEFAULT.transforms()
    transform = LIBRARIES["torchvision"].transform(name, {}).transform
    assert ([transform.resize], [transform.crop], transform.mean) == (
        preset.resize_size,
        preset.crop_size,
        tuple(preset.mean),
    )


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet10t", {}),
        ("resnet50.tv_in1k", {}),  # bilinear, where the default weights' is bicubic
        ("vit_base_patch16_clip_224", {}),
        ("convnext_tiny.fb_in22k_ft_in1k_384", {}),  # squash
        ("efficientnet_b0", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
    ],
)
def test_a_transform_left_out_is_the_one_of_timms_weights(name, args):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    transform = completed(arch=f"timm:{name}", args=args).classifier.transform
    config = timm.data.resolve_data_config(args, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs = timm.data.create_transform(**config)
    for image in (photo(), photo(90, 70)):
        assert_same_pixels(ours(image, transform), theirs(image), transform)


def test_the_transform_that_was_taken_is_said_and_one_that_is_given_counts():
    out = io.StringIO()
    taken = completed(Notes(out), arch="torchvision:resnet18").classifier.transform
    assert (taken.resize, taken.crop, taken.interpolation) == (256, 224, "bilinear")
    said = f"transform, as torchvision's ResNet18_Weights.IMAGENET1K_V1 has it: {taken}\n"
    assert out.getvalue() == said
    given = completed(Notes(out), arch="torchvision:resnet18", transform={"crop": 32}).classifier.transform
    assert (given.resize, given.crop) == (None, 32)
    assert out.getvalue() == said


@pytest.mark.parametrize(
    ("arch", "args", "message"),
    [
        ("nets:make", {}, "nets:make cannot say what images its weights were made for"),
        ("transformers:vit", {}, "transformers:vit states no transform without a folder (arch: hf:URI)"),
        ("timm:resnet10t", {"img_size": [32, 64]}, "args.img_size is [32, 64]"),
        (
            "timm:deepseek_vit_412m",
            {},
            "that of timm's deepseek_vit_412m.deepseek_v4_1_flash is not one that can be said here "
            "(crop_mode border, 546x546)",
        ),
    ],
)
def test_a_transform_that_nobody_states_or_we_cannot_say_is_required(arch, args, message):
    assert refused(ConfigError, completed, arch=arch, args=args) == (
        f"classifier.transform: required: {message}; give crop, or resize as [height, width], mean and std"
    )


# --- Folders of save_pretrained ---


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def offline(monkeypatch):
    """Whatever opens a socket fails."""

    def refuse(*_args):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def tiny_config(transformers, kind, **changes):
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    sizes = {
        "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        | {"image_size": 32, "patch_size": 8},
        "deit": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        | {"image_size": 32, "patch_size": 8},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    }
    return transformers.CONFIG_MAPPING[kind](**sizes[kind], **names, **changes)


def save_folder(transformers, folder: Path, kind: str, **changes: object) -> torch.nn.Module:
    """A random network as save_pretrained leaves it."""
    config = tiny_config(transformers, kind, **changes)
    model = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    net = (model[0] if isinstance(model, tuple) else model)(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return net


def test_a_folder_is_a_classifier_of_its_weights_classes_and_transform(transformers, offline, tmp_path, capfd):
    for kind in ("vit", "resnet", "deit"):
        net = save_folder(transformers, tmp_path / kind, kind)
        capfd.readouterr()
        quiet = Notes(io.StringIO())
        job = completed(quiet, arch=f"hf:{tmp_path / kind}", classes=None, weights=None)
        settings = job.classifier
        assert (settings.arch, settings.classes) == (f"transformers:{kind}", CLASSES)
        assert (settings.transform.resize, settings.transform.mean) == ((32, 32), (0.5, 0.5, 0.5))
        classifier = bring(job, Store(), quiet.say)
        with torch.no_grad():
            images = torch.randn(3, 3, 32, 32)
            torch.testing.assert_close(classifier(images), net(images).logits, rtol=0, atol=1e-6)
        assert capfd.readouterr() == ("", "")


def test_its_bundle_needs_no_folder(transformers, offline, tmp_path):
    save_folder(transformers, tmp_path / "vit", "vit")
    for index in range(60):
        image = tmp_path / "images" / CLASSES[index % 3] / f"{index}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(picture(index))
    changes = {"input": ImagesInput(uri=f"{tmp_path}/images"), "held_out": 0.99, "device": "cpu"}
    job = fit_job(arch=f"hf:{tmp_path}/vit", classes=None, weights=None).model_copy(update=changes)
    fitted = fit(job, Notes())
    fitted.save(Store(), f"{tmp_path}/bundle")
    shutil.rmtree(tmp_path / "vit")
    loaded = load_bundle(Store(), f"{tmp_path}/bundle")
    assert (loaded.manifest.arch, loaded.manifest.classes) == ("transformers:vit", CLASSES)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.classifier(images), fitted.classifier(images))  # laid out in another way


def test_a_folder_can_be_in_a_store(transformers, store, bucket, tmp_path):
    save_folder(transformers, tmp_path / "vit", "vit")
    for path in (tmp_path / "vit").iterdir():
        store.write(f"{bucket}/vit/{path.name}", path.read_bytes())
    job = complete(fit_job(arch=f"hf:{bucket}/vit", classes=None, weights=None), store, Notes().say)
    assert bring(job, store, Notes().say)(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_nothing_in_a_config_runs_code_or_fetches(transformers, offline, tmp_path):
    save_folder(transformers, tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('the code of the folder was run')")
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Net"},
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "_name_or_path": "evil/net",
        "quantization_config": {"quant_method": "evil"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = completed(arch=f"hf:{tmp_path}", classes=None, weights=None).classifier
    assert not any("evil" in json.dumps(value) for value in settings.args.values())
    build_classifier(settings.arch, {**settings.args, **config}, 3)  # as a hostile bundle would have it


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("ViT", {}),
        ("ViT", {"size": {"height": 48, "width": 64}, "resample": 3, "do_normalize": False}),
        ("CLIP", {}),
        ("Bit", {"crop_size": {"height": 200, "width": 180}}),
        ("DeiT", {}),
        ("Beit", {}),
        ("Siglip", {}),
        ("Pvt", {}),
        ("MobileNetV1", {}),
        ("MobileNetV2", {}),
        ("Levit", {}),
        ("ConvNext", {"size": {"shortest_edge": 224}}),
        ("ConvNext", {"size": {"shortest_edge": 384}}),
    ],
)
def test_the_transform_of_a_preprocessor_is_its_own(transformers, kind, given):
    processor = getattr(transformers, f"{kind}ImageProcessor")(**given)
    transform, _ = of_processor(json.loads(processor.to_json_string()), "p.json")
    for image in (photo(), photo(457, 311)):
        theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
        assert_same_pixels(ours(image, transform), theirs, transform)


def test_the_preprocessor_of_an_older_version_is_understood(transformers):
    document = {"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224}
    document |= {"feature_extractor_type": "ConvNextFeatureExtractor"}
    document |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    transform, _ = of_processor(document, "p.json")
    assert transform == TransformSettings(resize=256, crop=224, interpolation="bicubic")
    square, _ = of_processor({**document, "feature_extractor_type": "ViTFeatureExtractor"}, "p.json")
    assert (square.resize, square.crop) == ((224, 224), None)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"image_processor_type": "MobileViTImageProcessor"}, "(image processor MobileViT)"),
        ({"image_processor_type": "os"}, "(image processor os)"),
        ({}, "(image processor unnamed)"),
        ({"image_processor_type": "ViTImageProcessor", "do_rescale": False}, "(it does not scale pixels to 0..1)"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 1}, None),
    ],
)
def test_a_preprocessor_that_does_more_is_one_clear_line(transformers, document, message):
    found = refused(ConfigError, of_processor, document, "p.json")
    assert found.startswith("classifier.transform: required: ")
    assert message is None or message in found


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, ClassifierError, "{uri}: no model folder there (no config.json); save_pretrained writes one"),
        ({"config.json": "{{"}, ClassifierError, None),
        ({"config.json": "[]"}, ClassifierError, "{uri}/config.json: expected a JSON object, found list"),
        ({"config.json": "{}"}, ClassifierError, "{uri}/config.json: says neither model_type nor architecture"),
        (
            {"config.json": '{"model_type": "vit"}'},
            ConfigError,
            "classifier.transform: required: {uri} has no preprocessor_config.json; "
            "give crop, or resize as [height, width], mean and std",
        ),
    ],
)
def test_a_folder_that_is_none_is_one_clear_line(tmp_path, files, error, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = refused(error, completed, arch=f"hf:{tmp_path}", weights=None)
    assert (
        found.startswith(f"{tmp_path}/config.json: not JSON: ")
        if message is None
        else found == message.format(uri=tmp_path)
    )


def test_a_model_that_classifies_no_images_and_missing_weights_are_told(transformers, tmp_path):
    assert refused(ConfigError, build_classifier, "transformers:bert", {}, 3) == (
        "transformers:bert: transformers has no classifier of that name; did you mean beit?"
    )
    save_folder(transformers, tmp_path, "vit")
    (tmp_path / "model.safetensors").unlink()
    job = completed(arch=f"hf:{tmp_path}", weights=None)
    assert refused(NotFound, bring, job, Store(), Notes()) == f"{tmp_path}/model.safetensors: no such file or folder"


def test_classes_that_are_but_numbered_are_not_taken(transformers, tmp_path):
    save_folder(transformers, tmp_path, "vit")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert refused(ConfigError, completed, arch=f"hf:{tmp_path}", classes=None, weights=None) == (
        "classifier.classes or known: name at least two classes, each once, in logit order"
    )
    job = completed(arch=f"hf:{tmp_path}", classes=("a", "b"), weights=None)
    assert refused(ClassifierError, bring, job, Store(), Notes()) == (
        f"{tmp_path}/model.safetensors: the weights have 3 classes, `classes` names 2; "
        "name those of the weights, in logit order"
    )


def test_a_folder_of_timms_is_one_too(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    net = timm.create_model("resnet10t", num_classes=3).eval()
    cfg = {
        "input_size": [3, 96, 96],
        "crop_pct": 0.75,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
    }
    config = {"architecture": "resnet10t", "num_classes": 3, "label_names": CLASSES, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    job = completed(arch=f"hf:{tmp_path}", classes=None, weights=None)
    assert (job.classifier.arch, job.classifier.classes) == ("timm:resnet10t", CLASSES)
    assert (job.classifier.transform.resize, job.classifier.transform.crop) == (128, 96)
    images = torch.randn(2, 3, 96, 96)
    assert torch.equal(bring(job, Store(), Notes().say)(images), net(images))
