"""Clusters where the classes are known: found, kept apart from what is like a known class, and told what they are."""

import hashlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from gradosr.jobs.cli import run
from made_runs import CLASSES, calibration, rows, write_run
from PIL import Image
from safetensors.numpy import save
from tiny import local_job, run_here, write_archive

from gradosr.audit import audit, overview
from gradosr.audit.consensus import find
from gradosr.audit.dense import find_dense
from gradosr.audit.embeddings import read_embeddings
from gradosr.audit.rows import RunTable, id_of
from gradosr.audit.space import Reference, space_of
from gradosr.bundle.examples import KnownExamples
from gradosr.bundle.manifest import EXAMPLES, HELD_OUT, Manifest
from gradosr.config import AuditSettings, TransformSettings
from gradosr.errors import InputError
from gradosr.labels.clusters import clusters
from gradosr.store import Store

rng_of = np.random.default_rng
F = 40


def classes_of(seed: int, centres_KF: np.ndarray, each: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Vectors around centres, in an order drawn at random, and which centre each is around."""
    rng = rng_of(seed)
    kind = rng.permutation(np.repeat(np.arange(len(centres_KF)), each))
    return centres_KF[kind] + spread * rng.normal(size=(len(kind), centres_KF.shape[1])), kind


def purity(labels_N: np.ndarray, true_N: np.ndarray) -> float:
    """Share of the clustered images that are of the most frequent class of their cluster."""
    sizes = [np.bincount(true_N[labels_N == label]).max() for label in range(labels_N.max() + 1)]
    return float(sum(sizes) / (labels_N >= 0).sum())


@pytest.fixture(scope="module")
def known() -> Reference:
    """Held-out images of three known classes, which vary along the last axes by far more than they differ."""
    vectors, kind = classes_of(0, np.eye(3, F) * 4, 200)
    vectors[:, -6:] += rng_of(1).normal(size=(600, 6)) * 8
    return Reference(vectors, kind)


def unknown(seed: int, count: int, each: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Images of unknown classes that vary as the known ones do."""
    vectors, kind = classes_of(seed, np.roll(np.eye(count, F), 5, 1) * 4, each)
    vectors[:, -6:] += rng_of(seed + 100).normal(size=(len(vectors), 6)) * 8
    return vectors, kind


@pytest.mark.parametrize("count", [2, 4, 6])
def test_classes_are_found_whatever_known_classes_vary_by(known: Reference, count: int) -> None:
    vectors, kind = unknown(2, count)
    space = space_of(vectors, np.zeros(len(vectors), int), known, 10)
    found = find_dense(space, 10) or find(space.points_ND, space.known_KD, 10)
    assert count <= found.labels_N.max() + 1 <= count + 2  # a class may come in parts
    assert purity(found.labels_N, kind) > 0.97
    assert (found.labels_N >= 0).mean() > 0.85


def test_images_like_a_known_class_are_kept_out_and_named(known: Reference) -> None:
    vectors, kind = unknown(3, 3)
    alike = known.vectors_MF[known.predicted_M == 1][:80]
    both, predicted = np.concatenate([vectors, alike]), np.append(np.full(len(vectors), 2), np.ones(80, int))
    order = rng_of(0).permutation(len(both))
    space = space_of(both[order], predicted[order], known, 10)
    found = find_dense(space, 10) or find(space.points_ND, space.known_KD, 10)
    of_known = order >= len(vectors)
    assert (found.labels_N[of_known] < 0).mean() > 0.95
    resembled = found.resembled_N[of_known]
    assert {space.classes[label] for label in resembled[resembled >= 0].tolist()} == {1}
    assert (resembled >= 0).mean() > 0.95
    assert (found.labels_N[~of_known] >= 0).mean() > 0.9
    assert purity(found.labels_N, np.append(kind, np.full(80, 3))[order]) > 0.95


def with_bundle(folder: Path, known: Reference, pictures: bool = True) -> dict[str, Any]:
    """Write a bundle's manifest, held-out signals and examples; return its URI and digest."""
    folder.mkdir()
    logits = np.eye(3, dtype=np.float16)[known.predicted_M]
    features = known.vectors_MF.astype(np.float16)
    held_out = save(
        {"fitting.features": features, "fitting.logits": logits, "labels": known.predicted_M.astype(np.int32)}
    )
    jpegs = [picture(place) if pictures else None for place in range(60)]
    names = [CLASSES[label] for label in known.predicted_M[:60]]
    examples = KnownExamples([f"known/{place}.jpg" for place in range(60)], names, jpegs, features[:60])
    bodies = {HELD_OUT: held_out, EXAMPLES: examples.body()}
    for name, body in bodies.items():
        (folder / name).write_bytes(body)
    files = {name: hashlib.sha256(body).hexdigest() for name, body in bodies.items()}
    facts = {"arch": "none", "args": {}, "detector": "one_class", "false_alarm_rate": 0.05}
    manifest = Manifest(**facts, classes=CLASSES, transform=TransformSettings(crop=8), files=files)
    body = json.dumps(manifest.document()).encode()
    (folder / "bundle.json").write_bytes(body)
    return {"uri": str(folder), "digest": hashlib.sha256(body).hexdigest()}


def picture(place: int) -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (8, 8), (place, 0, 0)).save(body, "JPEG")
    return body.getvalue()


def run_of(
    folder: Path, known: Reference, digest: str = "b" * 64, days: int = 2, embedder: str = ""
) -> tuple[str, dict[str, int]]:
    """Write a run with two unknown classes and a known one over the threshold; return the kinds of these by key.

    The embeddings of an embedder have the classes apart, and known images of three more kinds.
    """
    vectors, kind = unknown(3, 2)
    alike = known.vectors_MF[known.predicted_M == 1][:40]
    both, kinds = np.concatenate([vectors, alike]), np.append(kind, np.full(40, 2))
    order, apart = rng_of(0).permutation(len(both)), rng_of(5)
    parts, truth = {}, {}
    for day, places in enumerate(np.array_split(order, days)):
        shard = f"2026-11-0{day + 1}/a.tar"
        made = rows(shard, np.full(len(places), 6.0), calibration(4999), features=both[places], index=[1] * len(places))
        made += rows(shard, [-1.0] * 200, calibration(4999), names=[f"calm{one}" for one in range(200)])
        for row, place in zip(made, places, strict=False):
            truth[row["key"]] = int(kinds[place])
            row["label"] = None if place % 5 == 0 else ("yak", "zebu", "dog")[kinds[place]]
        for place, row in enumerate(made if embedder else ()):
            row["embedding"] = np.float16(np.eye(6)[truth.get(row["key"], 3 + place % 3)] + apart.normal(size=6) / 10)
        parts[f"part-{day}"] = made
    return write_run(folder, parts, calibration(4999), width=F, bundle=digest, embedder=embedder), truth


def audited(uri: str, out: Path | None = None, **settings: Any) -> dict[str, Any]:
    document = audit(Store(), uri, AuditSettings(**settings), None, out)
    return json.loads(json.dumps(document, allow_nan=False))  # as a reader of audit.json gets it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, known: Reference) -> Path:
    """A run and its bundle."""
    folder = tmp_path_factory.mktemp("clusters")
    bundle = with_bundle(folder / "bundle", known)
    run_of(folder / "run", known, bundle["digest"])
    return folder


def test_a_cluster_tells_what_it_is(folder: Path) -> None:
    found = audited(f"{folder}/run", bundle=f"{folder}/bundle")
    groups = found["groups"]
    assert groups["method"] == {"space": "features", "known": True}
    assert groups["clustered"] + groups["left_over"] == groups["considered"] == 160
    one, two = groups["items"]
    assert {one["labels"][0]["name"], two["labels"][0]["name"]} == {"yak", "zebu"}
    for item in groups["items"]:
        assert item["labels"] == sorted(item["labels"], key=lambda label: (-label["images"], label["name"]))
        assert sum(label["images"] for label in item["labels"]) == item["labelled"] < item["size"]
        assert item["days"] == {"first": "2026-11-01", "last": "2026-11-02"}
        assert len(item["nearest_known"]) == 6
        assert set(item["nearest_known"]) <= set(found["known_images"])
    (alike,) = groups["look_alikes"]
    assert (alike["class"], 36 <= alike["images"] <= 40) == ("dog", True)
    assert {found["known_images"][name]["class"] for name in alike["nearest_known"]} == {"dog"}
    assert alike["false_alarm_share"] == pytest.approx(alike["expected_false_alarms"] / alike["images"])


def test_listed_images_have_known_ones_beside_them_and_their_pictures_reach_the_page(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    monkeypatch.setattr("gradosr.audit.report.write", lambda facts, shown, _out: pages.append((facts, shown)))
    audited(f"{folder}/run", tmp_path / "out", bundle=f"{folder}/bundle")
    ((facts, shown),) = pages
    listed = {row["id"] for row in facts["highest"]}
    assert listed <= set(facts["nearest_known"])
    named = {one for ids in facts["nearest_known"].values() for one in ids}
    assert named <= set(facts["known_images"]) == set(shown.known)
    for name, one in facts["known_images"].items():
        place = int(one["key"].removeprefix("known/").removesuffix(".jpg"))
        assert one["picture"]
        assert Image.open(io.BytesIO(shown.known[name])).getpixel((0, 0))[0] == pytest.approx(place, abs=3)


def test_the_map_shows_neighbours_and_is_the_same_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "MOST", 120)
    first, again = (audited(f"{folder}/run", bundle=f"{folder}/bundle")["map"] for _ in range(2))
    assert first == again
    assert {len(first[name]) for name in ("x", "y", "ids", "keys", "groups", "predicted")} == {120}
    xy = np.stack([first["x"], first["y"]], 1)
    assert (xy.min(), xy.max()) == (0, 1)
    label = np.array([str(one) for one in first["groups"]])
    for name in set(label) - {"None"}:
        inside, outside = xy[label == name], xy[label != name]
        spread = np.linalg.norm(inside - inside.mean(0), axis=1).mean()
        assert np.linalg.norm(outside - inside.mean(0), axis=1).mean() > 2 * spread


def test_an_audit_does_without_a_bundle_that_is_gone_or_another(folder: Path, tmp_path: Path, known: Reference) -> None:
    assert audited(f"{folder}/run")["notes"] == []  # nobody said where it is
    gone = audited(f"{folder}/run", bundle=f"{tmp_path}/nowhere")
    assert [note for note in gone["notes"] if "no known images are compared with" in note]
    assert gone["known_images"] == {} == gone["nearest_known"]
    assert gone["groups"]["method"] == {"space": "features", "known": False}
    other = with_bundle(tmp_path / "other", known, pictures=False)
    found = audited(f"{folder}/run", bundle=other["uri"])
    assert "not the bundle that the run was scored with" in found["notes"][0]
    uri, _ = run_of(tmp_path / "run", known, other["digest"])
    kept = audited(uri, bundle=other["uri"])
    assert kept["notes"] == []
    assert {one["picture"] for one in kept["known_images"].values()} == {False}


def test_a_run_records_where_its_bundle_is(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path, features="unknown"))
    assert json.loads((tmp_path / "results/run.json").read_text())["bundle"] == f"{tmp_path}/bundle"
    assert not [note for note in audited(f"{tmp_path}/results")["notes"] if "known images are compared" in note]


# --- embeddings


def embeddings(path: Path, truth: dict[str, int], **columns: pa.Array) -> Path:
    """Write vectors in which the classes are apart, whatever the classifier sees."""
    rng = rng_of(5)
    vectors = np.stack([np.eye(6)[kind] + 0.1 * rng.normal(size=6) for kind in truth.values()])
    own = {"key": pa.array(list(truth)), "vector": pa.array(list(vectors.astype(np.float32)))}
    pq.write_table(pa.table(own | columns), path)
    return path


def test_clusters_are_found_in_the_users_embeddings(folder: Path, tmp_path: Path, known: Reference) -> None:
    uri, truth = run_of(tmp_path / "run", known)
    calm = {f"2026-11-0{day}/a.tar#calm{one}": 3 + one % 3 for day in (1, 2) for one in range(200)}
    path = embeddings(tmp_path / "own.parquet", truth | calm)
    assert run(["audit", uri, "--out", str(tmp_path / "out"), "--embeddings", str(path), "--json"]) == 0
    groups = json.loads((tmp_path / "out/audit.json").read_text())["groups"]
    assert groups["method"] == {"space": "embeddings", "known": True}
    assert groups["considered"] == 160
    tops = [item["labels"][0]["images"] / item["labelled"] for item in groups["items"]]
    assert (len(tops), min(tops)) == (3, 1.0)  # also those that the classifier takes for dogs


@pytest.mark.slow
def test_clusters_are_found_in_the_embeddings_that_a_run_stores(tmp_path: Path, known: Reference) -> None:
    uri, truth = run_of(tmp_path / "run", known, embedder="timm:other")
    found = audited(uri, tmp_path / "out")
    groups = found["groups"]
    assert groups["method"] == {"space": "embedder", "known": True}
    assert groups["considered"] == 160
    tops = [item["labels"][0]["images"] / item["labelled"] for item in groups["items"]]
    assert (len(tops), min(tops)) == (3, 1.0)
    assert found["results"]["fingerprint"]["embedder"]["arch"] == "timm:other"
    assert "compared by the embeddings of timm:other" in (tmp_path / "out/index.html").read_text()
    table = RunTable(Store(), uri)
    alike = Counter(truth[key] for key in truth if clusters(Store(), table, []).get(id_of(key)))
    assert alike == {0: 60, 1: 60, 2: 40}
    own = embeddings(tmp_path / "own.parquet", truth)
    assert audited(uri, embeddings=str(own))["groups"]["method"]["space"] == "embeddings"


def test_images_of_a_run_without_an_embedding_are_counted(tmp_path: Path, known: Reference) -> None:
    uri, _ = run_of(tmp_path / "run", known, embedder="timm:other")
    for part in (tmp_path / "run/parts").iterdir():
        table, metadata = pq.read_table(part), pq.read_metadata(part).metadata
        kept = pa.array([vector if place % 2 else None for place, vector in enumerate(table["embedding"].to_pylist())])
        column = kept.cast(table.schema.field("embedding").type)
        table = table.set_column(table.column_names.index("embedding"), "embedding", column)
        pq.write_table(table.replace_schema_metadata(metadata), part)
    found = audited(uri)
    assert found["notes"] == ["80 of 160 images over the threshold have no embedding and are in no group"]
    assert found["groups"]["considered"] == 80
    assert found["groups"]["method"] == {"space": "embedder", "known": True}


def test_images_without_an_embedding_are_left_out(tmp_path: Path, known: Reference) -> None:
    uri, truth = run_of(tmp_path / "run", known)
    some = dict(list(truth.items())[:100])
    found = audited(uri, embeddings=str(embeddings(tmp_path / "own.parquet", some)))
    assert found["notes"] == ["60 of 160 images over the threshold have no embedding and are in no group"]
    assert found["groups"]["considered"] == 100
    assert found["groups"]["method"] == {"space": "embeddings", "known": False}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"vector": pa.array([None, [1.0]])}, "vectors of different lengths, or none"),
        ({"vector": pa.array([[1.0], [1.0, 2.0]])}, "vectors of different lengths"),
        ({"vector": pa.array([[1.0], [float("nan")]])}, "not a finite number"),
        ({"vector": pa.array(["a", "b"])}, "not a list of numbers"),
        ({"vector": pa.array([["a"], ["b"]])}, "not a Parquet file of embeddings"),
        ({"key": pa.array(["other", "keys"])}, "none of 2 keys of the run has an embedding"),
    ],
)
def test_a_file_that_holds_no_embeddings_is_one_clear_line(
    tmp_path: Path, columns: dict[str, pa.Array], message: str
) -> None:
    own = {"key": pa.array(["a", "b"]), "vector": pa.array([[1.0], [2.0]])}
    pq.write_table(pa.table(own | columns), tmp_path / "own.parquet")
    with pytest.raises(InputError, match=f"own.parquet: .*{message}"):
        read_embeddings(Store(), str(tmp_path / "own.parquet"), ["a", "b"])


@pytest.mark.parametrize("body", [b"", b"no Parquet"])
def test_another_file_is_no_embeddings(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "own.parquet").write_bytes(body)
    with pytest.raises(InputError, match="not a Parquet file of embeddings"):
        read_embeddings(Store(), str(tmp_path / "own.parquet"), ["a"])
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "own.parquet")
    with pytest.raises(InputError, match="no column vector"):
        read_embeddings(Store(), str(tmp_path / "own.parquet"), ["a"])


def test_embeddings_come_back_in_the_order_of_the_keys_the_first_of_each(tmp_path: Path) -> None:
    table = pa.table({"key": ["c", "a", "b", "a"], "vector": pa.array([[3.0], [1.0], [2.0], [9.0]])})
    pq.write_table(table, tmp_path / "own.parquet", row_group_size=2)
    there, vectors = read_embeddings(Store(), str(tmp_path / "own.parquet"), ["a", "x", "c"])
    assert there.tolist() == [True, False, True]
    assert vectors.tolist() == [[1.0], [3.0]]
