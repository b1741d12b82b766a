"""Bundles: the same scores after saving and loading, and one clear line for every way to damage one."""

import dataclasses
import hashlib
import json
import pickletools

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny import CPU, fit_one_class

from gradosr.bundle.bundle import Bundle, load_bundle
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import Manifest
from gradosr.classifier.build import build_classifier
from gradosr.config import Signals, TransferSettings, TransformSettings
from gradosr.detectors import ClassSplit, Observation, TransferDetector
from gradosr.errors import BundleError, ClassifierError, ConfigError
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer
from gradosr.scoring.scorer import Scorer, Scores
from gradosr.store import Store

FILES = {"bundle.json", "classifier.safetensors", "detector.safetensors", "calibration.safetensors"}
ARCH = "torchvision:shufflenet_v2_x0_5"
TRANSFORM = TransformSettings(crop=32)
OBJECTIVES = ("all_hot", "predicted")
PROVENANCE = {
    "held_out_accuracy": 0.5,
    "accuracy_by_class": {},
    "images": {"train": 3},
    "left_out": [],
    "dropped_coordinates": [],
}


def pixels(count, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def made(kind="one_class"):
    """A bundle of a small classifier with random weights and a detector fitted to noise."""
    torch.manual_seed(0)
    classifier = build_classifier(ARCH, {}, 3)
    observed = Observer(classifier, TRANSFORM, Signals(objectives=OBJECTIVES), Compute(torch.device("cpu")))(pixels(40))
    observation = observed.observation
    if kind == "one_class":
        detector = fit_one_class(observed)
    else:
        unknown = torch.arange(40) % 2 == 0
        settings = TransferSettings(hidden=8, epochs=2, learning_rate=0.01, weight_decay=0.0, batch_size=8)
        split = ClassSplit(observation, unknown, observation)
        detector = TransferDetector.trained(split, settings).moved(observation)
    calibration = Calibration.of(detector.score(observation).numpy(), 0.1)
    manifest = Manifest(
        arch=ARCH, args={}, classes=("ant", "bee", "Käfer"), transform=TRANSFORM, detector=kind,
        objectives=OBJECTIVES, false_alarm_rate=0.1, provenance=PROVENANCE,
    )  # fmt: skip
    return Bundle(manifest, classifier, detector, {"float32": calibration})


@pytest.fixture(scope="module")
def one_class():
    return made()


@pytest.fixture
def local():
    return Store()


@pytest.fixture
def saved(one_class, tmp_path, local):
    """The folder of a good bundle, to be damaged."""
    one_class.save(local, f"{tmp_path}/bundle")
    return tmp_path / "bundle"


def refused(error, uri, trust=()):
    with pytest.raises(error) as raised:
        load_bundle(Store(), str(uri), trust)
    assert type(raised.value) is error
    message = str(raised.value)
    assert "\n" not in message
    return message


def rewrite(folder, **changes):
    """Change bundle.json; a value of None removes its key."""
    path = folder / "bundle.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def replace_file(folder, name, body):
    """Another file under the digest that fits it."""
    (folder / name).write_bytes(body)
    files = json.loads((folder / "bundle.json").read_text())["files"]
    rewrite(folder, files=files | {name: hashlib.sha256(body).hexdigest()})


def arrays(scores: Scores) -> dict[str, object]:
    own = {name: values for name, values in vars(scores).items() if name != "signals"}
    return own | dict(scores.signals)


def assert_same_scores(one, other):
    """But for rounding: the form of a norm is chosen by its time."""
    first, second = (arrays(Scorer(bundle, CPU).score(pixels(5, seed=7))) for bundle in (one, other))
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name], rtol=1e-5, atol=1e-7, err_msg=name)


# --- The way there and back ---


@pytest.mark.parametrize("kind", ["one_class", "transfer"])
def test_a_loaded_bundle_gives_the_same_scores(kind, tmp_path, local):
    bundle = made(kind)
    bundle.save(local, f"{tmp_path}/new/folder")
    loaded = load_bundle(local, f"{tmp_path}/new/folder/")
    assert {path.name for path in (tmp_path / "new/folder").iterdir()} == FILES
    assert_same_scores(loaded, bundle)
    written = {name: getattr(loaded.manifest, name) for name in ("files", "calibration")}
    assert loaded.manifest == bundle.manifest.model_copy(update=written)
    assert (
        written["calibration"].images
        == sum(written["calibration"].counts)
        == len(bundle.calibrations["float32"].scores)
    )
    assert loaded.facts() == bundle.facts()
    assert not loaded.classifier.training
    assert loaded.digest == hashlib.sha256((tmp_path / "new/folder/bundle.json").read_bytes()).hexdigest()


def test_a_bundle_in_a_bucket_is_the_same_bundle(one_class, bucket, store):
    one_class.save(store, f"{bucket}/models/insects")
    loaded = load_bundle(store, f"{bucket}/models/insects")
    assert_same_scores(loaded, one_class)
    assert {stored.uri.rpartition("/")[2] for stored in store.list(f"{bucket}/models/insects/")} == FILES
    with pytest.raises(BundleError) as raised:
        load_bundle(store, f"{bucket}/models/bees")
    assert str(raised.value) == f"{bucket}/models/bees: no bundle there (no bundle.json); `gradosr fit` makes one"


def test_saving_again_gives_the_same_bundle(saved, tmp_path, local):
    load_bundle(local, str(saved)).save(local, f"{tmp_path}/again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_the_entry_of_the_logits_is_kept_and_written_only_where_there_is_one(one_class, saved, tmp_path, local):
    assert "logits" not in json.loads((saved / "bundle.json").read_text())
    manifest = one_class.manifest.model_copy(update={"logits": 0})
    Bundle(manifest, one_class.classifier, one_class.detector, one_class.calibrations).save(local, f"{tmp_path}/picked")
    loaded = load_bundle(local, f"{tmp_path}/picked")
    assert loaded.manifest.logits == 0
    assert len(loaded.classifier._forward_hooks) == 1
    assert not load_bundle(local, str(saved)).classifier._forward_hooks


def test_another_bundle_has_another_digest(one_class, saved, tmp_path, local):
    calibration = Calibration(one_class.calibrations["float32"].scores + np.float32(1))
    other = Bundle(one_class.manifest, one_class.classifier, one_class.detector, {"float32": calibration})
    other.save(local, f"{tmp_path}/other")
    assert load_bundle(local, f"{tmp_path}/other").digest != load_bundle(local, str(saved)).digest


def test_no_file_of_a_bundle_is_a_pickle(saved):
    for name in FILES:
        body = (saved / name).read_bytes()
        assert not body.startswith((b"\x80", b"PK")), name  # a pickle, or the zip of torch.save
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(body))
        if name.endswith(".safetensors"):
            assert safetensors.torch.load(body)
        else:
            assert json.loads(body)["version"] == 1


def test_facts_are_those_of_the_manifest_and_the_calibration(one_class):
    assert one_class.facts() == {
        "classes": ["ant", "bee", "Käfer"],
        "detector": "one_class",
        "false_alarm_rate": 0.1,
        "threshold": one_class.calibrations["float32"].threshold(0.1),
        **PROVENANCE,
    }


# --- Damage ---


def test_an_empty_folder_is_no_bundle(tmp_path):
    for uri in (tmp_path, tmp_path / "none"):
        assert refused(BundleError, uri) == f"{uri}: no bundle there (no bundle.json); `gradosr fit` makes one"


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_version_is_refused(saved, version):
    rewrite(saved, version=version)
    assert refused(BundleError, saved) == (
        f"{saved}: bundle version {version}; this gradosr reads version 1, fit it again"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"version": 1, "arch": ', "Expecting value: line 1 column 24 (char 23)"),
        (b"[1, 2]", "'list' object has no attribute 'get'"),
        (b"\xff\xfe\x00", None),
    ],
)
def test_damaged_json_is_one_clear_line(saved, body, reason):
    (saved / "bundle.json").write_bytes(body)
    message = refused(BundleError, saved)
    assert message.startswith(f"{saved}: bundle.json is damaged: ")
    if reason is not None:
        assert message == f"{saved}: bundle.json is damaged: {reason}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": None}, "classes: required"),
        ({"classes": "ant"}, "classes: expected a list"),
        ({"transform": {"crop": 3, "std": [1, 1, 0]}}, "transform.std.2: expected a number above 0"),
        ({"hook": "os:system"}, "hook: unknown key"),
    ],
)
def test_a_manifest_that_does_not_fit_names_the_key(saved, changes, reason):
    rewrite(saved, **changes)
    assert refused(BundleError, saved) == f"{saved}: bundle.json is damaged: {reason}"


@pytest.mark.parametrize("name", sorted(FILES - {"bundle.json"}))
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    assert refused(BundleError, saved) == (
        f"{saved}/{name}: missing, though bundle.json names it; copy the bundle again"
    )


@pytest.mark.parametrize("name", sorted(FILES - {"bundle.json"}))
def test_a_changed_file_is_named(saved, name):
    body = bytearray((saved / name).read_bytes())
    body[-1] ^= 1
    (saved / name).write_bytes(bytes(body))
    message = f"{saved}/{name}: not the file that bundle.json names (digest differs); copy the bundle again"
    assert refused(BundleError, saved) == message
    rewrite(saved, files={})
    assert refused(BundleError, saved).endswith("(digest differs); copy the bundle again")


@pytest.mark.parametrize("name", sorted(FILES - {"bundle.json"}))
def test_a_file_of_another_kind_is_named(saved, name):
    replace_file(saved, name, b"garbage")
    told = refused(BundleError, saved).replace("HeaderTooSmall", "header too small")  # as older safetensors has it
    assert told == f"{saved}/{name}: not a safetensors file: Error while deserializing: header too small"


@pytest.mark.parametrize(
    ("name", "array"), [("detector.safetensors", "direction_KD"), ("calibration.safetensors", "scores")]
)
def test_a_missing_array_is_named(saved, name, array):
    arrays = safetensors.torch.load((saved / name).read_bytes())
    del arrays[array]
    replace_file(saved, name, safetensors.torch.save(arrays))
    assert refused(BundleError, saved) == f"{saved}: array '{array}' is missing"


def test_weights_of_another_architecture_are_named(saved):
    replace_file(saved, "classifier.safetensors", safetensors.torch.save({"fc.bias": torch.zeros(4)}))
    message = refused(ClassifierError, saved)
    assert message.startswith(f"{saved}/classifier.safetensors: weights do not fit the architecture: ")
    assert message.endswith("1 of another shape: fc.bias (4,) instead of (3,)")


def test_an_unknown_detector_is_named(saved):
    rewrite(saved, detector="nonsense")
    assert refused(BundleError, saved).startswith(f"{saved}: unknown detector 'nonsense' (valid: one_class, transfer, ")


# --- No code from data ---


def test_a_bundle_that_names_a_factory_imports_nothing_unless_trusted(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bundled_nets.py").write_text(
        "from pathlib import Path\nfrom torchvision.models import shufflenet_v2_x0_5\n"
        "Path('imported').touch()\ndef net(): return shufflenet_v2_x0_5(num_classes=3)\n"
    )
    rewrite(saved, arch="bundled_nets:net")
    assert refused(ConfigError, saved, trust=("bundled_nets:other",)) == (
        "bundled_nets:net: not trusted; a bundle imports no code unless told: "
        "`trust: [bundled_nets:net]` in a config, or --set 'trust=[bundled_nets:net]'"
    )
    assert not (tmp_path / "imported").exists()
    loaded = load_bundle(Store(), str(saved), ("bundled_nets:net",))
    assert (tmp_path / "imported").exists()
    assert_same_scores(loaded, made())


@pytest.mark.parametrize(
    "changes", [{"args": {"weights": "DEFAULT"}}, {"arch": "timm:hf-hub:a/b"}, {"args": {"pretrained": True}}]
)
def test_a_bundle_that_would_fetch_something_is_refused(saved, changes):
    rewrite(saved, **changes)
    assert refused(ConfigError, saved).endswith("would fetch or read files; give classifier.weights instead")


# --- A calibration per class ---


def per_class_of(bundle):
    """The bundle, calibrated per class on scores of two classes; of the third none."""
    rng = np.random.default_rng(0)
    calibrations = {
        precision: Calibration.of(rng.normal(size=60), 0.1, rng.integers(0, 2, 60), bundle.manifest.classes)
        for precision in ("float32", "bfloat16")
    }
    return dataclasses.replace(bundle, calibrations=calibrations)


def test_a_calibration_per_class_is_kept_in_each_precision(one_class, tmp_path, local):
    bundle = per_class_of(one_class)
    bundle.save(local, f"{tmp_path}/bundle")
    loaded = load_bundle(local, f"{tmp_path}/bundle")
    scores, predicted = np.linspace(-3, 3, 90), np.arange(90) % 3
    for precision, calibration in bundle.calibrations.items():
        again = loaded.calibrations[precision]
        assert again.kind == "per_class"
        np.testing.assert_array_equal(again.p_values(scores, predicted), calibration.p_values(scores, predicted))
        summary = {"float32": loaded.manifest.calibration, **loaded.manifest.calibrations}[precision]
        assert summary.by_class == {name: len(calibration.by_class[k]) for k, name in enumerate(("ant", "bee"))}
        assert sum(summary.by_class.values()) == summary.images == 60
    assert loaded.facts()["threshold"].keys() == {"ant", "bee", "Käfer"}
    assert loaded.facts() == bundle.facts()


def test_a_pooled_bundle_is_written_as_it_always_was(saved):
    document = json.loads((saved / "bundle.json").read_text())
    assert document["calibration"].keys() == {"images", "edges", "counts"}
    assert "calibrations" not in document
    assert safetensors.torch.load((saved / "calibration.safetensors").read_bytes()).keys() == {"scores"}


def test_logits_that_rounding_makes_equal_keep_their_predicted_class(tmp_path):
    logits_BK = torch.tensor([[10.0, 10.001, 0.0], [3.0, 1.0, 2.0]])
    assert logits_BK.half().argmax(1).tolist() == [0, 0]
    seen = Observation(torch.zeros(2, 0), logits_BK)
    held_out = HeldOut(seen, torch.tensor([0, 1]), {"float32": seen})
    again = HeldOut.from_tensors(held_out.tensors(predicted=True), ("float32",)).calibration["float32"]
    assert again.logits_BK.argmax(1).tolist() == [1, 0]
    torch.testing.assert_close(again.logits_BK, logits_BK, rtol=1e-3, atol=0)
    assert "predicted.float32" not in held_out.tensors()  # a pooled bundle is written as before
