"""Known images: how those held out are shared between fitting and calibration, and where their pixels are."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import tar
from PIL import Image
from safetensors.torch import save_file
from tiny import ARCH, CLASSES, TRANSFORM, labelled_tar
from tiny_net import tiny

from gradosr.archive import decoded
from gradosr.classifier.resolve import build
from gradosr.classifier.training import train
from gradosr.config import FitJob
from gradosr.detectors import Observation
from gradosr.fit import fitting
from gradosr.fit.fitting import fit, observe, prepare
from gradosr.fit.known_images import CALIBRATION, FITTING, TRAINING, fitting_share
from gradosr.run.console import Notes
from gradosr.scoring import memory
from gradosr.scoring.observer import Observer
from gradosr.store import Store


@pytest.mark.parametrize(("held_out", "share"), [(0, 0.5), (40, 0.5), (750, 0.5), (1000, 0.375), (1500, 0.25)])
def test_half_of_few_images_fits_and_a_quarter_of_many(held_out: int, share: float) -> None:
    assert fitting_share(held_out) == share
    assert fitting_share(held_out + 10**6) == 0.25


def job(folder: Path, known: str, **changes: object) -> FitJob:
    document = {
        "classifier": {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": TRANSFORM},
        "train": {"epochs": 2, "batch_size": 8, "crop_padding": 1, "flip": True},
        "input": {"kind": "tar", "uri": f"{folder}/{known}"},
        "held_out": 0.5,
        "detector": {"kind": "one_class"},
        "bundle": f"{folder}/bundle",
        "batch_size": 7,
        "device": "cpu",
    }
    return FitJob.model_validate({**document, **changes})


def same(one: Observation, other: Observation) -> bool:
    return torch.equal(one.log_norms_BC, other.log_norms_BC) and torch.equal(one.logits_BK, other.logits_BK)


def test_training_and_observations_are_those_of_images_in_memory(tmp_path: Path) -> None:
    Store().write(f"{tmp_path}/known.tar", labelled_tar(0, 90))
    ready = prepare(job(tmp_path, "known.tar"), Notes())
    known, use_N, settings = ready.known, ready.known.use_N, ready.job.classifier
    images = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in range(90)]
    pixels_NCHW, labels_N = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.arange(90) % 3
    assert torch.equal(known[torch.arange(90)], pixels_NCHW)
    assert torch.equal(known.labels_N, labels_N)

    classifier, own = build(ready.job, settings.args, 3), use_N == TRAINING
    assert ready.job.train is not None
    train(classifier, pixels_NCHW[own], labels_N[own], ready.job.train, TRANSFORM, ready.compute.device, print)
    found = ready.classifier.state_dict()
    assert all(torch.equal(found[name], weights) for name, weights in classifier.state_dict().items())

    observer = Observer(classifier, TRANSFORM, ready.job.detector.signals, ready.compute)
    for use in (FITTING, CALIBRATION):
        observe(observer, known.of(use), 7)  # the first batch of a size also chooses how to compute
        batches = pixels_NCHW[use_N == use].split(7)
        expected = Observation.joined((observer(batch).observation for batch in batches), sum(map(len, batches)))
        assert same(observe(observer, known.of(use), 7), expected)
        of_two = (use_N == use) & (labels_N > 0)
        batches = pixels_NCHW[of_two].split(7)
        expected = Observation.joined((observer(batch).observation for batch in batches), sum(map(len, batches)))
        assert same(observe(observer, known.of(use).of_classes([1, 2]), 7), expected)
        assert torch.equal(known.of(use).of_classes([1, 2]).labels_N, labels_N[of_two] - 1)


SIDE = 96
MAX_LOGIT = {"kind": "max_logit"}


def flat_tar(count: int) -> bytes:
    """Pictures of SIDE x SIDE pixels of one colour each, with labels."""
    members = []
    for number in range(count):
        body = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE), (number % 256, number // 4 % 256, 128)).save(body, "PNG", compress_level=1)
        members += [(f"{number:05}.png", body.getvalue()), (f"{number:05}.cls", CLASSES[number % 3].encode())]
    return tar(members)


@pytest.mark.slow
@pytest.mark.skipif(not (memory.PROC / "clear_refs").exists(), reason="the system keeps no peak")
def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "BATCH", 8)  # a batch and what is made ahead, 32 MiB otherwise, would hide little
    monkeypatch.setattr("gradosr.archive.loading.AHEAD_BYTES", 2**20)
    save_file(tiny(3).state_dict(), tmp_path / "tiny.safetensors")
    transform = TRANSFORM.model_copy(update={"resize": (SIDE, SIDE)})
    classifier = {"arch": ARCH, "args": {"num_classes": 3}, "classes": CLASSES, "transform": transform}
    classifier |= {"weights": f"{tmp_path}/tiny.safetensors"}

    def taken(count: int) -> int:
        Store().write(f"{tmp_path}/{count}.tar", flat_tar(count))
        asked = job(tmp_path, f"{count}.tar", classifier=classifier, train=None, held_out=0.9, detector=MAX_LOGIT)
        before = memory.resident(on_gpu=False)
        memory.forget_peak(on_gpu=False)
        fit(asked, Notes())
        return memory.peak(on_gpu=False) - before

    taken(100)  # what is imported and allocated at first
    few, many = taken(100), taken(1200)
    assert many - few < 1100 * 3 * SIDE**2  # the bytes of their pixels; kept in memory, they take three times that


def test_the_place_of_much_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Store().write(f"{tmp_path}/known.tar", labelled_tar(0, 90))
    with Notes() as notes:
        fit(job(tmp_path, "known.tar"), notes)
        assert "temporary" not in capsys.readouterr().err
        monkeypatch.setattr(fitting, "LARGE", 90 * 3 * 16 * 16)
        fit(job(tmp_path, "known.tar"), notes)
    assert f"temporary file in {tempfile.gettempdir()} until the end: 0.1 MB" in capsys.readouterr().err
