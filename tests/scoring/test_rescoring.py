"""A run scored again from its stored signals: the same table as a fresh run's, and no image, classifier or row lost."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from gradosr.jobs.cli import run
from hostile import tar
from PIL import Image
from tiny import ARCH, CLASSES, TRANSFORM, fit_one_class, local_job, make_bundle, picture, run_here

from gradosr.archive.shards import Shard
from gradosr.audit import audit
from gradosr.bundle.bundle import Bundle, DetectorOnly, load_bundle, load_detector
from gradosr.bundle.calibration import Calibration
from gradosr.bundle.held_out import HeldOut
from gradosr.bundle.manifest import Manifest
from gradosr.config import AuditSettings, FitJob, S3Settings, ScoreJob
from gradosr.config.settings import validate_settings
from gradosr.detectors import Observation
from gradosr.detectors.learned import LearnedDetector, View
from gradosr.errors import ConfigError, FingerprintMismatch
from gradosr.results.folder import RunFolder
from gradosr.results.part import schema, wide_column
from gradosr.run.plan import prepare
from gradosr.scoring.compute import Compute
from gradosr.scoring.observer import Observer
from gradosr.scoring.rescoring import rescored
from gradosr.store import Store

CHANGED = {"unknown_score", "p_value", "is_unknown", "open_set_class"}
CPU = Compute(torch.device("cpu"))


def pixels(seed: int, images: int) -> torch.Tensor:
    """Images of many colours, contrasts and grains: rounding is small beside what a network sees of them."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 4, 4, generator=draw).repeat_interleave(4, 2).repeat_interleave(4, 3)
    fine = torch.rand(images, 3, 16, 16, generator=draw)
    share, contrast, colour = (torch.rand(images, width, 1, 1, generator=draw) for width in (1, 1, 3))
    mixed = share * coarse + (1 - share) * fine
    return (255 * ((1 - contrast) * colour + contrast * mixed)).byte()


def shard(seed: int, images: int = 60) -> bytes:
    members = []
    for place, one in enumerate(pixels(seed, images)):
        body = io.BytesIO()
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(body, "PNG")
        members.append((f"{place:05}.png", body.getvalue()))
    return tar(members)


def seen_by(bundle: Bundle, seed: int, images: int = 99) -> Observation:
    manifest = bundle.manifest
    with torch.no_grad():
        return Observer(bundle.classifier, manifest.transform, manifest, CPU)(pixels(seed, images)).observation


def fit(folder: Path, seed: int = 0, name: str = "bundle") -> None:
    """A bundle of the default detector."""
    bundle = make_bundle(Store(), str(folder / name), seed=seed)
    manifest = bundle.manifest
    with torch.no_grad():
        detector = fit_one_class(Observer(bundle.classifier, TRANSFORM, manifest, CPU)(pixels(3, 99)))
    scores = detector.score(seen_by(bundle, 4)).numpy()
    replace(bundle, detector=detector, calibrations={"float32": Calibration.of(scores, 0.05)}).save(
        Store(), str(folder / name)
    )


def learn(folder: Path, parent: str = "bundle", name: str = "learned") -> str:
    """A bundle with the classifier of another and a detector that looks at every signal."""
    bundle = load_bundle(Store(), str(folder / parent), (ARCH,))
    known = seen_by(bundle, 5)
    view = View.fit(known, bundle.detector.score(known))
    width = len(view.standardiser.mean_D)
    weights_D = torch.randn(width, generator=torch.Generator().manual_seed(7)) / width**0.5
    detector = LearnedDetector(bundle.detector, bundle.manifest.detector, view, weights_D)
    others = seen_by(bundle, 6)
    calibrations = {"float32": Calibration.of(detector.score(others).numpy(), 0.05)}
    provenance = {"learned": {"ids": ["0123456789abcdef"]}}
    manifest = bundle.manifest.model_copy(update={"detector": "learned", "provenance": provenance})
    held_out = HeldOut(known, torch.zeros(len(known)), {"float32": others})
    replace(bundle, manifest=manifest, detector=detector, calibrations=calibrations, held_out=held_out).save(
        Store(), str(folder / name)
    )
    return str(folder / name)


def rescoring(folder: Path, **changes: object) -> ScoreJob:
    document = {
        "bundle": str(folder / "learned"),
        "input": {"kind": "results", "uri": str(folder / "results")},
        "output": str(folder / "again"),
    }
    return ScoreJob.model_validate({**document, **changes})


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with signals (results), a learned bundle, and a fresh run with that one (fresh)."""
    folder = tmp_path_factory.mktemp("scored")
    for place in range(3):
        Store().write(f"{folder}/archive/{place:05}.tar", shard(10 + place))
    fit(folder)
    broken = [(f"{seed}.png", picture(seed)) for seed in range(3)]
    Store().write(f"{folder}/archive/broken.tar", tar([broken[0], ("no.png", b"no image"), *broken[1:]]))
    run_here(local_job(folder, signals="all", representation="all", batch_size=64))
    learned, fresh = learn(folder), f"{folder}/fresh"
    run_here(local_job(folder, signals="all", representation="all", bundle=learned, output=fresh, batch_size=64))
    return folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    """A copy of the runs and bundles whose archive and weights are gone."""
    for name in ("results", "bundle", "learned"):
        shutil.copytree(scored / name, tmp_path / name)
    for name in ("bundle", "learned"):
        (tmp_path / name / "classifier.safetensors").unlink()
    return tmp_path


def tables(run_folder: Path) -> dict[str, pa.Table]:
    parts = json.loads((run_folder / "_SUCCESS").read_text())["parts"]
    return {part: pq.read_table(run_folder / "parts" / f"{part}.parquet") for part in parts}


def test_the_table_is_that_of_a_fresh_run_without_images_and_weights(scored: Path, folder: Path) -> None:
    plan, summary = run_here(rescoring(folder))
    assert (summary.counts["rows"], summary.counts["ok"], summary.failed, summary.quarantined) == (184, 183, {}, ())
    before, after, fresh = (tables(one) for one in (folder / "results", folder / "again", scored / "fresh"))
    assert before.keys() == after.keys() == fresh.keys()
    assert (folder / "again/stats.parquet").exists()
    for part, table in after.items():
        assert table.schema.remove_metadata().equals(fresh[part].schema.remove_metadata())
        unchanged = [name for name in table.column_names if name not in CHANGED]
        assert table.select(unchanged).equals(before[part].select(unchanged))
    old, new, expected = (pa.concat_tables(one.values()) for one in (before, after, fresh))
    scores, wanted, former = (one["unknown_score"].drop_null().to_numpy() for one in (new, expected, old))
    assert np.abs(scores - wanted).max() < 0.01 * wanted.std() < 0.1 * np.abs(scores - former).max()
    p_values, wanted_p = (one["p_value"].drop_null().to_numpy() for one in (new, expected))
    assert np.abs(p_values - wanted_p).max() <= 1.001 / 100  # a score that rounding moves past one calibration image
    assert (np.abs(p_values - wanted_p) > 1e-6).mean() < 0.05
    unknown = [one is True for one in new["is_unknown"].to_pylist()]
    named = ["unknown" if one else name for one, name in zip(unknown, new["predicted_class"].to_pylist(), strict=True)]
    assert new["open_set_class"].to_pylist() == named
    assert sum(unknown) == summary.counts["unknown"] > 0

    theirs = prepare(local_job(scored, signals="all", representation="all")).fingerprint
    assert plan.fingerprint == {
        **theirs, "bundle": load_detector(Store(), f"{folder}/learned").digest, "rescored": [theirs["bundle"]]
    }  # fmt: skip
    assert RunFolder(Store(), f"{folder}/again").about()["learned"] == ["0123456789abcdef"]
    footers = [pq.read_metadata(folder / name / "parts" / f"{part}.parquet").metadata for name in ("results", "again")]
    assert footers[0][b"gradosr.shard"] == footers[1][b"gradosr.shard"]
    assert json.loads(footers[1][b"gradosr.fingerprint"]) == plan.fingerprint
    assert not run_here(rescoring(folder))[0].pending


def test_a_rescored_run_is_rescored_and_audited_as_any_other(scored: Path, tmp_path: Path) -> None:
    shutil.copytree(scored, tmp_path / "all")
    folder = tmp_path / "all"
    archive = {"kind": "tar", "uri": f"{scored}/archive/"}
    run_here(rescoring(folder))
    back = rescoring(
        folder, bundle=f"{folder}/bundle", input={"kind": "results", "uri": f"{folder}/again"}, output=f"{folder}/back"
    )
    plan, _ = run_here(back)
    assert plan.fingerprint["input"]["uri"] == archive["uri"]
    assert plan.fingerprint["rescored"] == [
        plan.fingerprint["bundle"],
        load_detector(Store(), f"{folder}/learned").digest,
    ]
    for part, table in tables(folder / "back").items():
        first = tables(folder / "results")[part]
        scores, wanted = (one["unknown_score"].drop_null().to_numpy() for one in (table, first))
        assert scores == pytest.approx(wanted, abs=0.01 * float(wanted.std()))
    document = audit(Store(), str(folder / "again"), AuditSettings(), out=folder / "report")
    assert not [note for note in document["notes"] if "missing" in note]
    assert any((folder / "report").rglob("*.jpg"))


def test_a_rescoring_goes_on_where_it_ended(folder: Path) -> None:
    _, summary = run_here(rescoring(folder), only=1)
    assert not (folder / "again/_SUCCESS").exists()
    (first,) = (folder / "again/parts").iterdir()
    written = first.stat().st_mtime_ns
    plan, summary = run_here(rescoring(folder))
    assert (len(plan.pending), summary.counts["rows"], first.stat().st_mtime_ns) == (3, 184, written)


def test_a_run_in_a_bucket_is_rescored_within_it(folder: Path, bucket: str, s3_settings: S3Settings) -> None:
    store = Store(s3_settings)
    for path in (one for name in ("results", "learned") for one in (folder / name).rglob("*") if one.is_file()):
        store.write(f"{bucket}/{path.relative_to(folder)}", path.read_bytes())
    source = {"kind": "results", "uri": f"{bucket}/results/"}
    settings = s3_settings.model_dump()
    job = rescoring(folder, bundle=f"{bucket}/learned/", input=source, output=f"{bucket}/again/", store=settings)
    run_here(job)
    run_here(rescoring(folder))
    for part, table in tables(folder / "again").items():
        found = pq.read_table(io.BytesIO(store.read(f"{bucket}/again/parts/{part}.parquet")))
        assert found.equals(table)


@pytest.mark.slow
def test_a_rescoring_that_was_killed_is_finished_by_the_command_and_no_row_is_there_twice(folder: Path) -> None:
    kill_in_the_second_part = (
        "import os, signal, sys, pathlib\n"
        "from gradosr.results.folder import RunFolder\n"
        "from test_rescoring import rescoring, run_here\n"
        "put, done = RunFolder.put_part, []\n"
        "def fatal(self, part, body):\n"
        "    if done:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    done.append(part)\n"
        "    put(self, part, body)\n"
        "RunFolder.put_part = fatal\n"
        "run_here(rescoring(pathlib.Path(sys.argv[1])))\n"
    )
    died = subprocess.run([sys.executable, "-c", kill_in_the_second_part, str(folder)], check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    (first,) = (folder / "again/parts").iterdir()
    written = first.stat().st_mtime_ns
    command = ["rescore", str(folder / "results"), "--bundle", f"{folder}/learned", "--out", f"{folder}/again"]
    done = subprocess.run(
        [Path(sys.executable).parent / "gradosr", *command, "--set", "workers=2", "--json"],
        check=False, timeout=300, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert (done.returncode, json.loads(done.stdout)["counts"]["rows"]) == (0, 184), done.stderr
    keys = [key for table in tables(folder / "again").values() for key in table["key"].to_pylist()]
    assert (len(keys), len(set(keys)), first.stat().st_mtime_ns) == (184, 184, written)
    assert len(list((folder / "again/parts").iterdir())) == 4


def test_a_dry_run_estimates_and_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rescore", str(folder / "results"), "--bundle", f"{folder}/learned", "--out", f"{folder}/again"]
    assert run([*command, "--set", "workers=2", "--dry-run", "--json", "--set", "price_per_hour=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pending_shards"], found["estimate"]["images"], found["estimate"]["workers"]) == (4, 184, 2)
    assert found["estimate"]["sample_images"] == 184
    assert not (folder / "again").exists()


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *more: str, bundle: str = "learned") -> tuple[int, str]:
    """Exit code and the one line of a command that is refused."""
    code = run(["rescore", f"{folder}/results", "--bundle", f"{folder}/{bundle}", "--out", f"{folder}/again", *more])
    (line,) = capsys.readouterr().err.splitlines()
    assert not (folder / "again").exists()
    return code, line


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "fingerprint": {**document["fingerprint"], **changes}}))


@pytest.mark.parametrize(
    ("stored", "number"), [("none", "183"), ("unknown", "about 17\\d|about 18\\d"), ({"sample": 3}, "about 1\\d\\d")]
)
def test_a_run_without_all_signals_is_refused_with_the_cost(
    stored: object, number: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "results/run.json", signals=stored)
    code, line = refusal(folder, capsys)
    assert code == 4
    pattern = (
        rf"results: (?:{number}) of 183 scored images have no stored signals; score its archive with `signals: all`"
    )
    width = 3 + 64 + 8 + 2 * 7
    assert re.search(pattern + rf" into a new output, which takes {2 * width} bytes", line), line


def test_a_bundle_of_another_classifier_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_bundle(Store(), f"{folder}/other", seed=1)
    code, line = refusal(folder, capsys, bundle="other")
    assert code == 2
    assert "other: sees images otherwise than the bundle that scored" in line


def test_a_precision_in_which_the_bundle_is_not_calibrated_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(folder / "results/run.json", precision="bfloat16")
    code, line = refusal(folder, capsys)
    assert (code, "precision: bfloat16, but the bundle's p-values hold only in float32" in line) == (2, True)


def test_an_unfinished_run_and_a_folder_without_one_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "results/_SUCCESS").unlink()
    assert refusal(folder, capsys) == (
        4, f"gradosr: {folder}/results: not a finished run (no _SUCCESS); run `gradosr score` to its end first"
    )  # fmt: skip
    shutil.rmtree(folder / "results")
    code, line = refusal(folder, capsys)
    assert (code, "results: no results there" in line) == (4, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "all") for name in ("features", "representation", "signals")),
        ("embedder", "{arch: 'timm:resnet10t', weights: w.pt}"),
    ],
)
def test_settings_of_images_are_refused(
    name: str, value: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = refusal(folder, capsys, "--set", f"{name}={value}")
    assert (code, f"{name}: not with input.kind results" in line) == (2, True)


def test_an_output_of_another_run_is_refused(folder: Path) -> None:
    with pytest.raises(FingerprintMismatch, match=r"results: holds a run of other settings \(bundle was"):
        prepare(rescoring(folder, output=f"{folder}/results"))


def test_a_damaged_part_is_quarantined_and_a_strange_one_fails(folder: Path) -> None:
    damaged, strange, bare, torn = sorted((folder / "results/parts").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-100])
    torn.write_bytes(b"PAR1" + bytes(2000) + torn.read_bytes()[2004:])
    table = pq.read_table(strange)
    other = {b"gradosr.fingerprint": b'{"bundle": "another"}'}
    pq.write_table(table.replace_schema_metadata(other), strange)
    table = pq.read_table(bare)
    field = table.schema.field("logits")
    table = table.set_column(table.column_names.index("logits"), field, pa.nulls(len(table), field.type))
    own = {b"gradosr.fingerprint": pq.read_metadata(bare).metadata[b"gradosr.fingerprint"]}
    pq.write_table(table.replace_schema_metadata(own), bare)
    _, summary = run_here(rescoring(folder))
    assert summary.quarantined == (damaged.stem, torn.stem)
    assert summary.failed.keys() == {strange.stem, bare.stem}
    assert "scored with other settings than run.json tells" in summary.failed[strange.stem]
    assert "60 scored images without stored signals" in summary.failed[bare.stem]


def made_rows(logits: list[list[float]], predicted: list[int]) -> pa.RecordBatch:
    """Rows with scores and signals; the last has none."""
    columns = schema(["logits"])
    values = [
        {
            "key": f"{place}", "shard": "s", "row": place, "status": "ok", "predicted_index": index,
            "predicted_class": CLASSES[index], "confidence": 0.5, "max_logit": 1.0, "energy": -1.0,
        }
        for place, index in enumerate(predicted)
    ] + [{"key": "bad", "shard": "s", "row": len(predicted), "status": "truncated", "error": "cut off"}]  # fmt: skip
    rows = pa.RecordBatch.from_pylist(values, pa.schema([one for one in columns if one.name != "logits"]))
    stored = np.array([True] * len(logits) + [False])
    return rows.append_column(columns.field("logits"), wide_column(np.array([*logits, [0, 0, 0]], np.float16), stored))


class ByClass:
    """Scores an image by the class that its logits predict; not a number for class 2."""

    def score(self, observation: Observation) -> torch.Tensor:
        return torch.tensor([0.0, 1.0, torch.nan])[observation.logits_BK.argmax(1)]


def test_the_predicted_class_is_that_of_the_table_and_a_score_that_is_no_number_is_told() -> None:
    manifest = make_manifest()
    bundle = DetectorOnly(manifest, ByClass(), {"float32": Calibration(np.zeros(99, np.float32))}, "")  # type: ignore[arg-type]
    rows = made_rows([[1, 1, 1], [1, 1, 1], [0, 0, 5]], [1, 0, 2])
    found = rescored(Shard("p", "/p", "1", 1), rows, bundle, "float32").to_pylist()
    assert [row["unknown_score"] for row in found] == [1.0, 0.0, None, None]
    assert [row["is_unknown"] for row in found] == [True, False, None, None]
    assert [row["open_set_class"] for row in found] == ["unknown", "cat", None, None]
    assert [row["status"] for row in found] == ["ok", "ok", "non_finite", "truncated"]
    assert [row["error"] for row in found][1:] == [None, "a logit or a gradient norm is not a finite number", "cut off"]
    assert [row["predicted_class"] for row in found] == ["dog", "cat", None, None]


def make_manifest() -> Manifest:
    return Manifest(arch=ARCH, args={}, classes=CLASSES, transform=TRANSFORM, detector="energy", false_alarm_rate=0.05)


def test_only_a_score_job_takes_results() -> None:
    with pytest.raises(ConfigError, match="input"):
        validate_settings(FitJob, {"input": {"kind": "results", "uri": "/r"}, "output": "/b"}, "fit")
