"""Learning from labels: from a run with signals and labels to a bundle that knows better."""

import io
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gradosr.jobs.cli import run
from hostile import tar
from PIL import Image
from tiny import ARCH, local_job, make_bundle, run_here

from gradosr.bundle.bundle import load_bundle, load_detector, read_held_out
from gradosr.lab.evaluation.metrics import auroc
from gradosr.labels.folder import rows_of, write_labels
from gradosr.scoring.rescoring import observation_of
from gradosr.store import Store

IMAGES = 120
SIGNALS = ["logits", "features", "middle", "log_norms"]


def noisy(seed: int, most: int) -> bytes:
    """A PNG of 16 x 16 random pixels, none brighter than `most`."""
    body = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, most, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def is_dim(key: str) -> bool:
    """Every other image is a little dimmer than all that the bundle knows."""
    return int(key.split("#")[1].removesuffix(".png")) % 2 == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and a run over known and unknown images with all signals."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "archive").mkdir()
    for shard in range(2):
        numbers = range(shard * IMAGES // 2, (shard + 1) * IMAGES // 2)
        members = [(f"{i:05}.png", noisy(i, 236 if i % 2 else 256)) for i in numbers]
        (folder / "archive" / f"{shard}.tar").write_bytes(tar(members))
    run_here(local_job(folder, signals="all"))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """The same, labelled by no test before."""
    for name in ("bundle", "results"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


def keys_of(folder: Path) -> list[str]:
    return sorted(pq.read_table(folder / "results" / "parts")["key"].to_pylist())


def label(folder: Path, keys: list[str], results: str = "results") -> None:
    facts = {"who": "me", "when": datetime(2026, 1, 1, tzinfo=timezone.utc), "source": "csv"}
    labels = [{"key": key, "label": "unknown" if is_dim(key) else "known", **facts} for key in keys]
    write_labels(Store(), f"{folder}/{results}", rows_of(labels))


def learn(folder: Path, *more: str, bundle: str = "bundle", results: str = "results", out: str = "learned") -> int:
    return run(["learn", f"{folder}/{bundle}", "--run", f"{folder}/{results}", "--out", f"{folder}/{out}", *more])


def scores_of(folder: Path, bundle: str) -> tuple[list[str], np.ndarray]:
    """Scores of the run's images by a bundle's detector, from the stored signals."""
    table = pq.read_table(folder / "results" / "parts")
    seen = observation_of(table.combine_chunks().to_batches()[0])
    return table["key"].to_pylist(), load_detector(Store(), f"{folder}/{bundle}").detector.score(seen).numpy()


def test_a_bundle_that_has_learned_tells_more_unknown_images_apart(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = keys_of(folder)[:60]
    label(folder, labelled)
    assert learn(folder, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["labels"], facts["unknown"], facts["known"], facts["without_signals"]) == (60, 30, 30, 0)
    assert facts["penalty"] is not None
    keys, new = scores_of(folder, "learned")
    _, old = scores_of(folder, "bundle")
    fresh = np.array([key not in labelled for key in keys])
    unknown = np.array([is_dim(key) for key in keys])
    assert auroc(new[fresh], unknown[fresh]) > auroc(old[fresh], unknown[fresh]) + 0.05


def test_a_learned_bundle_is_a_bundle_with_its_lineage(made: Path, folder: Path) -> None:
    label(folder, keys_of(folder)[:60])
    assert learn(folder) == 0
    store, old, new = Store(), f"{folder}/bundle", f"{folder}/learned"
    parent, child = load_bundle(store, old, (ARCH,)), load_bundle(store, new, (ARCH,))
    assert child.manifest.detector == "learned"
    assert child.manifest.provenance["lineage"] == [parent.digest]
    assert len(child.manifest.provenance["learned"]["ids"]) == 60
    for name, weight in parent.classifier.state_dict().items():
        assert torch.equal(weight, child.classifier.state_dict()[name])
    held_out = read_held_out(store, new)
    scores = np.sort(child.detector.score(held_out.calibration["float32"]).numpy())
    np.testing.assert_allclose(child.calibrations["float32"].scores, scores, rtol=1e-6)
    _, from_signals = scores_of(folder, "learned")
    shutil.copytree(made / "archive", folder / "archive")
    run_here(local_job(folder, bundle=new, output=f"{folder}/again"))
    table = pq.read_table(folder / "again" / "parts").sort_by("key")
    np.testing.assert_allclose(table["unknown_score"].to_numpy(), from_signals, rtol=0.05, atol=0.05)


def test_learning_again_starts_from_the_original_detector(folder: Path) -> None:
    keys = keys_of(folder)
    label(folder, keys[:40])
    assert learn(folder) == 0
    label(folder, keys[40:60])
    assert learn(folder, bundle="learned", out="twice") == learn(folder, out="once") == 0
    for one, other in zip(*(arrays_of(folder, name) for name in ("once", "twice")), strict=True):
        torch.testing.assert_close(one, other)


def arrays_of(folder: Path, bundle: str) -> list[torch.Tensor]:
    return list(load_detector(Store(), f"{folder}/{bundle}").detector.arrays().values())


def nothing(folder: Path) -> None:
    pass


def few(folder: Path) -> None:
    label(folder, keys_of(folder)[:9])


def all_known(folder: Path) -> None:
    label(folder, keys_of(folder)[::2])


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for part in (folder / "results" / "parts").iterdir():
        about = pq.read_metadata(part).metadata
        footer = {name: value for name, value in about.items() if name != b"ARROW:schema"}
        pq.write_table(change(pq.read_table(part)).replace_schema_metadata(footer), part)


def no_signals(folder: Path) -> None:
    rewrite(folder, lambda table: table.drop_columns(SIGNALS))
    label(folder, keys_of(folder)[:60])


def some_signals(folder: Path) -> None:
    def four(table: pa.Table) -> pa.Table:
        kept = [row if number < 4 else row | dict.fromkeys(SIGNALS) for number, row in enumerate(table.to_pylist())]
        return pa.Table.from_pylist(kept, table.schema)

    rewrite(folder, four)
    label(folder, keys_of(folder)[:60])


def another_bundle(folder: Path) -> None:
    make_bundle(Store(), f"{folder}/bundle", seed=1)
    label(folder, keys_of(folder)[:60])


def older_bundle(folder: Path) -> None:
    path = folder / "bundle" / "bundle.json"
    document = json.loads(path.read_text())
    del document["files"]["signals.safetensors"]
    path.write_text(json.dumps(document))
    label(folder, keys_of(folder)[:60])


NO_USE = {
    nothing: "no labels yet; `gradosr label",
    few: "9 labelled images with signals; a detector learns from 10 or more",
    all_known: "60 labelled images, none of them unknown: label some that are",
    no_signals: "its table has no signals to learn from; score the archive with `signals: all`",
    some_signals: "4 labelled images with signals (of 56 more, no signals are stored); a detector learns",
    another_bundle: "scored with another bundle",
    older_bundle: "no signals.safetensors: made by an older gradosr; fit it again",
}


@pytest.mark.parametrize("case", NO_USE, ids=lambda case: case.__name__)
def test_what_is_no_use_is_one_line(
    case: Callable[[Path], None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(folder)
    assert learn(folder) == 4
    told = capsys.readouterr().err
    assert NO_USE[case] in told
    assert len(told.splitlines()) == 1
    assert not (folder / "learned").exists()


def test_a_bundle_is_not_overwritten_by_what_it_learned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn(folder, out="bundle") == 2
    assert "name a folder of its own" in capsys.readouterr().err


def test_labels_of_a_file_are_imported_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{key},{'unknown' if is_dim(key) else 'known'}" for key in keys_of(folder)[:40]]
    (folder / "labels.csv").write_text("\n".join(["key,label", *lines]))
    assert learn(folder, "--labels", f"{folder}/labels.csv", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["labels"] == 40
    assert "labels.csv: 40 labels imported" in told.err
    assert learn(folder, "--labels", f"{folder}/labels.csv", "--json", out="again") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["labels"] == 40
    assert "imported before; nothing is added" in told.err


def test_labels_of_a_file_go_into_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels.csv").write_text("key,label\n")
    assert learn(folder, "--labels", f"{folder}/labels.csv", "--run", f"{folder}/results") == 2
    assert "--labels FILE: of which --run are they?" in capsys.readouterr().err
    assert learn(folder, "--labels", f"{folder}/nowhere.csv") == 4
    assert "nowhere.csv" in capsys.readouterr().err
