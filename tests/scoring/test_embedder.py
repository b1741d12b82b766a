"""A second network beside the classifier: its features are stored, of the images that were asked for and no others."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from gradosr.jobs.cli import run
from hostile import tar
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny import ARCH, TRANSFORM, local_job, make_bundle, picture, run_here, write_archive
from tiny_net import Tiny
from torch import Tensor, nn

from gradosr.archive.decode import decode, to_input_size
from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import prepare, prepared_batches
from gradosr.classifier.build import normalise
from gradosr.config import MAX_PIXELS, ResultsInput, ScoreJob, ScreenJob, TransformSettings
from gradosr.errors import ClassifierError, FingerprintMismatch, GradosrError, InputError, MachineFault, NotFound
from gradosr.run.estimate import estimate
from gradosr.run.plan import prepare as planned
from gradosr.run.preflight import check_embedder, check_given
from gradosr.run.travel import check_travel
from gradosr.scoring.compute import Compute
from gradosr.scoring.embedder import Embedder, load_embedder
from gradosr.scoring.worker import ShardWorker
from gradosr.store import Store

CPU = Compute(torch.device("cpu"))
OWN = TransformSettings(resize=(24, 24), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
WIDTH = 5


def net(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(WIDTH).eval()


def own(folder: Path, seed: int = 0) -> dict[str, object]:
    """The settings of a factory of one's own, whose output is the features."""
    weights = folder / f"own{seed}.safetensors"
    save_file(net(seed).state_dict(), weights)
    transform = OWN.model_dump(mode="json")
    return {"arch": ARCH, "args": {"num_classes": WIDTH}, "weights": str(weights), "transform": transform}


def mobile(folder: Path, classes: int = 7, headless: bool = False) -> tuple[dict[str, object], nn.Module]:
    """The settings of a network of torchvision, and the network."""
    torch.manual_seed(1)
    network = torchvision.models.mobilenet_v3_small(num_classes=classes).eval()
    weights = folder / "mobile.pt"
    torch.save({f"module.{name}": one for name, one in network.state_dict().items()}, weights)
    transform = {"resize": [32, 32]}
    return {"arch": "torchvision:mobilenet_v3_small", "weights": str(weights), "transform": transform}, network


def given(network: nn.Module, seeds: list[int], transform: TransformSettings = OWN) -> np.ndarray:
    """Return a network's output for pictures, each passed by itself."""
    pixels = [to_input_size(decode(picture(seed), MAX_PIXELS).pixels, transform) for seed in seeds]
    with torch.no_grad():
        return torch.cat([network(normalise(one[None], transform)) for one in pixels]).numpy()


def table_of(folder: Path, results: str = "results") -> pa.Table:
    return pa.concat_tables(map(pq.read_table, sorted((folder / results / "parts").iterdir())))


def seed_of(key: str) -> int:
    return int(re.findall(r"(\d+)\.png", key)[0])


def load(job: ScoreJob) -> Embedder:
    embedder = load_embedder(job, Store(), CPU)
    assert embedder is not None
    return embedder


# --- the column


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [({}, "none"), ({"features": "none"}, "none"), ({"signals": {"sample": 3}}, "third"), ({"features": "all"}, "all")],
)
def test_the_column_is_what_the_network_gives_of_each_image_that_is_asked_for(
    tmp_path: Path, settings: dict[str, object], drawn: str
) -> None:
    write_archive(Store(), f"{tmp_path}/archive", images=20)
    run_here(local_job(tmp_path, embedder=own(tmp_path), **settings))
    table = table_of(tmp_path)
    keys, unknown = table["key"].to_pylist(), table["is_unknown"].to_pylist()
    assert any(unknown)
    also = {"none": lambda _: False, "third": lambda key: zlib.crc32(key.encode()) % 3 == 0, "all": lambda _: True}
    assert table["embedding"].is_valid().to_pylist() == [
        over or also[drawn](key) for key, over in zip(keys, unknown, strict=True)
    ]
    assert table.schema.field("embedding").type == pa.list_(pa.float16())
    stored = table.filter(table["embedding"].is_valid())
    values = np.array(stored["embedding"].to_pylist(), np.float32)
    expected = given(net(), [seed_of(key) for key in stored["key"].to_pylist()])
    assert values.shape == (len(stored), WIDTH)
    np.testing.assert_allclose(values, expected, rtol=2e-3, atol=2e-3)


def test_scores_and_other_columns_are_those_of_a_run_without_it(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive", images=12)
    run_here(local_job(tmp_path, output=f"{tmp_path}/alone"))
    run_here(local_job(tmp_path, embedder=own(tmp_path)))
    found, alone = table_of(tmp_path), table_of(tmp_path, "alone")
    assert found.drop_columns("embedding").schema.remove_metadata() == alone.schema.remove_metadata()
    for name in ("key", "shard", "row", "status", "width", "height", "predicted_class", "label"):
        assert found[name] == alone[name]
    for name in ("unknown_score", "confidence", "energy"):  # the engine may take another form of the same norms
        np.testing.assert_allclose(found[name].to_numpy(), alone[name].to_numpy(), rtol=1e-3, atol=1e-4)
    about = json.loads((tmp_path / "alone/run.json").read_text())
    assert "embedder" not in about["fingerprint"]


def test_a_bad_image_and_a_vector_that_is_not_finite_are_rows_without_one(tmp_path: Path) -> None:
    members = [("a.png", picture(0)), ("b.png", b"no image"), ("c.png", picture(1))]
    Store().write(f"{tmp_path}/archive/00000.tar", tar(members))
    settings = own(tmp_path)
    beyond = net()
    nn.init.constant_(beyond.head.weight, 3.4e38)
    nn.init.constant_(beyond.head.bias, 3.4e38)
    save_file(beyond.state_dict(), settings["weights"])
    run_here(local_job(tmp_path, embedder=settings, features="all"))
    table = table_of(tmp_path)
    assert table["status"].to_pylist() == ["ok", "not_an_image", "ok"]
    assert table["embedding"].to_pylist() == [None] * 3
    assert table["unknown_score"].is_valid().to_pylist() == [True, False, True]


def test_an_image_is_decoded_once_and_made_ready_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def noted(data: bytes, most: int) -> object:
        decoded.append(data)
        return decode(data, most)

    monkeypatch.setattr("gradosr.archive.loading.decode", noted)
    encoded = EncodedImage("a", picture(3))
    both = prepare(encoded, TRANSFORM, MAX_PIXELS, OWN)
    assert len(decoded) == 1
    pixels = decode(picture(3), MAX_PIXELS).pixels
    assert torch.equal(both.pixels, to_input_size(pixels, TRANSFORM))
    assert torch.equal(both.beside, to_input_size(pixels, OWN))
    same = prepare(encoded, TRANSFORM, MAX_PIXELS, TRANSFORM.model_copy(update={"mean": (0.0, 0.0, 0.0)}))
    assert same.beside is same.pixels
    (batch,) = prepared_batches(iter([encoded]), TRANSFORM, MAX_PIXELS, 4, 1, OWN)
    assert torch.equal(batch[0].beside, both.beside)
    assert prepare(EncodedImage("a", b"no image"), TRANSFORM, MAX_PIXELS, OWN).beside is None


# --- the network


def test_of_a_librarys_network_the_features_before_its_last_layer_are_taken(tmp_path: Path) -> None:
    """The number of classes is told by the weights."""
    settings, network = mobile(tmp_path)
    network.classifier[3] = nn.Identity()
    embedder = load(local_job(tmp_path, embedder=settings))
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in range(3)]
    with torch.no_grad():
        expected = network(normalise(torch.stack(images), embedder.transform))
    assert embedder.width == 1024
    np.testing.assert_allclose(embedder(images), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_without_its_last_layer_is_known_by_its_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=0).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    settings = {"arch": "timm:resnet10t", "weights": f"{tmp_path}/w.safetensors", "transform": {"resize": [32, 32]}}
    embedder = load(local_job(tmp_path, embedder=settings))
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)]
    with torch.no_grad():
        expected = network(normalise(torch.stack(images), embedder.transform))
    np.testing.assert_allclose(embedder(images), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_folder_of_transformers_says_all_itself(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        num_labels=4,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(processor))
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    job = local_job(tmp_path, embedder={"arch": f"hf:{tmp_path}/vit"})
    embedder = load(job)
    assert (embedder.width, embedder.transform.resize) == (16, (32, 32))
    network.classifier = nn.Identity()
    images = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)]
    with torch.no_grad():
        expected = network(normalise(torch.stack(images), embedder.transform)).logits
    np.testing.assert_allclose(embedder(images), expected.numpy(), rtol=1e-4, atol=1e-5)
    made_of = planned(job).fingerprint["embedder"]
    assert made_of["arch"] == "hf:vit"
    assert set(made_of["files"]) == {"config.json", "preprocessor_config.json", "model.safetensors"}


def test_as_many_images_pass_at_once_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, sizes = local_job(tmp_path, embedder=own(tmp_path)), list[int]()
    images = [torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8) for _ in range(7)]
    whole = load(job)(images)
    forward = Tiny.forward

    def noted(self: Tiny, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(Tiny, "forward", noted)
    few = load_embedder(job, Store(), Compute(torch.device("cpu"), max_memory=200_000))
    assert few is not None
    np.testing.assert_allclose(few(images), whole, rtol=1e-4, atol=1e-5)
    assert sum(sizes) == 1 + 7  # the first is the blank image
    assert 1 < max(sizes) < 7


def test_memory_that_does_not_suffice_is_the_machines_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load(local_job(tmp_path, embedder=own(tmp_path)))

    def full(_self: Tiny, _x: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Tiny, "forward", full)
    with pytest.raises(MachineFault, match="embedder: this machine is at fault, not the data"):
        embedder([torch.zeros(3, 24, 24, dtype=torch.uint8)])


def test_bfloat16_is_near(tmp_path: Path) -> None:
    job = local_job(tmp_path, embedder=own(tmp_path))
    images = [torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8) for _ in range(3)]
    halved = load_embedder(job, Store(), Compute(torch.device("cpu"), "bfloat16"))
    assert halved is not None
    exact, near = load(job)(images), halved(images)
    assert 0 < np.abs(exact - near).max() < 0.05 * np.abs(exact).max()


# --- the run's identity


def test_a_run_that_was_interrupted_goes_on_with_the_same_network_and_refuses_another(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    job = local_job(tmp_path, embedder=own(tmp_path))
    run_here(job, only=1)
    other = own(tmp_path, seed=1)
    for changed in (other, None, {**job.embedder.model_dump(), "transform": {"resize": (32, 32)}}):
        with pytest.raises(FingerprintMismatch, match=r"results: holds a run of other settings \(embedder was"):
            planned(local_job(tmp_path, embedder=changed))
    moved = tmp_path / "moved.safetensors"
    Path(str(job.embedder.weights)).rename(moved)
    _, summary = run_here(local_job(tmp_path, embedder={**job.embedder.model_dump(), "weights": str(moved)}))
    assert (summary.scored, summary.failed) == (3, {})
    table = table_of(tmp_path)
    stored = table.filter(table["embedding"].is_valid())
    expected = given(net(), [seed_of(key) for key in stored["key"].to_pylist()])
    np.testing.assert_allclose(np.array(stored["embedding"].to_pylist(), np.float32), expected, rtol=2e-3, atol=2e-3)


def test_a_worker_refuses_files_that_were_replaced_since_the_run_began(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    job = local_job(tmp_path, embedder=own(tmp_path))
    plan = planned(job)
    plan.claim()
    save_file(net(1).state_dict(), str(job.embedder.weights))
    with pytest.raises(InputError, match="embedder: its files are others than when the run began"):
        ShardWorker(job, plan.fingerprint, threads=1).ready()


def test_a_run_that_is_scored_again_keeps_the_column(tmp_path: Path) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    run_here(local_job(tmp_path, embedder=own(tmp_path), signals="all"))
    job = ScoreJob(
        bundle=f"{tmp_path}/bundle", input=ResultsInput(uri=f"{tmp_path}/results"), output=f"{tmp_path}/again"
    )
    _, summary = run_here(job)
    assert summary.failed == {}
    before, after = table_of(tmp_path), table_of(tmp_path, "again")
    assert before["embedding"].null_count == 0
    assert after["embedding"] == before["embedding"]
    np.testing.assert_allclose(after["unknown_score"].to_numpy(), before["unknown_score"].to_numpy(), atol=0.02)
    assert json.loads((tmp_path / "again/run.json").read_text())["fingerprint"]["embedder"]["arch"] == ARCH


# --- told before the run


def wrong(name: str, folder: Path) -> dict[str, object]:
    settings, _ = mobile(folder)
    match name:
        case "no weights":
            return {"arch": "torchvision:mobilenet_v3_small"}
        case "no transform":
            return {"arch": ARCH}
        case "no source":
            return {"arch": "mobilenet"}
        case "not trusted":
            return {**own(folder), "arch": "tiny_net:keyed"}
    return settings | {
        "gone": {"weights": f"{folder}/gone.pt"},
        "no folder": {"arch": f"hf:{folder}/nowhere", "weights": None},
        "no such name": {"arch": "torchvision:mobilenet_v3_smal"},
        "other weights": {"arch": "torchvision:mobilenet_v3_large"},
        "no number": {"args": {"num_classes": 9}},
        "fetching": {"args": {"weights": "DEFAULT"}},
        "no features": squeezed(folder) if name == "no features" else {},
    }.get(name, {})


def squeezed(folder: Path) -> dict[str, object]:
    """A network that ends in a convolution."""
    weights = folder / "squeezed.pt"
    torch.save(torchvision.models.squeezenet1_1(num_classes=4).state_dict(), weights)
    return {"arch": "torchvision:squeezenet1_1", "weights": str(weights), "transform": {"resize": [64, 64]}}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no weights", "torchvision:mobilenet_v3_small needs weights; nothing is downloaded"),
        ("no transform", "tiny_net:tiny needs a transform, as it cannot say what images its weights were made for"),
        ("no source", "mobilenet: name its library as well"),
        (
            "not trusted",
            r"embedder.arch: tiny_net:keyed is code of its own; .* `trust: \[tiny_net:keyed\]`",
        ),
    ],
)
def test_a_mistake_in_the_config_is_told_by_the_config(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        local_job(tmp_path, embedder=wrong(name, tmp_path))


@pytest.mark.parametrize("name", ["gone", "no folder"])
def test_missing_files_are_told_first_of_all(tmp_path: Path, name: str) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    with pytest.raises((NotFound, ClassifierError), match=r"gone.pt: no such file|nowhere: no model folder there"):
        check_given(local_job(tmp_path, embedder=wrong(name, tmp_path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no such name", "embedder: torchvision:mobilenet_v3_smal: .* did you mean mobilenet_v3_small"),
        ("other weights", "embedder: .*mobile.pt: weights.* do not fit the architecture"),
        ("no number", r"embedder: .*mobile.pt: .*do not fit.*\(built with args.num_classes: 9\)"),
        (
            "fetching",
            "embedder: .*: argument weights would fetch or read files; give embedder.weights",
        ),
        ("no features", "embedder: torchvision:squeezenet1_1 has no features: no linear layer makes its output"),
    ],
)
def test_a_network_that_does_not_do_is_told_before_ray_starts(
    tmp_path: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    job = local_job(tmp_path, embedder=wrong(name, tmp_path))
    with pytest.raises(GradosrError, match=message) as caught:
        check_embedder(job)
    assert "\n" not in str(caught.value)
    config = tmp_path / "score.yaml"
    config.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True)))
    for command in ("score", "check"):
        code = run([command, str(config)])
        told = capsys.readouterr().err.strip().splitlines()
        assert (code in (2, 4), told[-1]) == (True, f"gradosr: {caught.value}"), command
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("factory", "message"),
    [("keyed", "tiny_net:keyed gives dict"), ("not_a_module", "tiny_net:not_a_module returns str")],
)
def test_a_factory_whose_output_is_no_features_is_told(tmp_path: Path, factory: str, message: str) -> None:
    arch = f"tiny_net:{factory}"
    settings = {"arch": arch, "args": {"num_classes": 3}, "transform": {"resize": (16, 16)}}
    with pytest.raises(GradosrError, match=f"embedder: {message}"):
        load(local_job(tmp_path, embedder=settings, trust=[ARCH, arch]))


def test_a_factory_may_bring_its_own_weights(tmp_path: Path) -> None:
    settings = {"arch": ARCH, "args": {"num_classes": 3}, "transform": {"resize": (16, 16)}}
    job = local_job(tmp_path, embedder=settings)
    assert load(job).width == 3


def test_local_files_are_refused_where_nodes_do_not_see_them(tmp_path: Path) -> None:
    job = local_job(tmp_path, embedder=own(tmp_path))
    far = job.model_copy(update={"bundle": "s3://a/b", "output": "s3://a/c", "input": ResultsInput(uri="s3://a/d")})
    with pytest.raises(GradosrError, match=r"^embedder.weights: .* is a local path"):
        check_travel(far)


def test_a_check_and_a_dry_run_tell_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    job = local_job(tmp_path, embedder=own(tmp_path), features="none")
    found = estimate(planned(job))
    assert found is not None
    assert found.wide_bytes == 2 * WIDTH
    config = tmp_path / "score.yaml"
    config.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_unset=True)))
    assert run(["check", str(config)]) == 0
    assert f"embedder    {ARCH}, {WIDTH} features; resize=(24, 24)" in capsys.readouterr().out


def test_a_screening_may_ask_for_candidate_classes_of_it_alone(tmp_path: Path) -> None:
    make_bundle(Store(), f"{tmp_path}/bundle")
    document = local_job(tmp_path, embedder=own(tmp_path), features="none").model_dump(exclude_unset=True)
    gates = {"gates": {"new_candidate_class": 10}}
    assert ScreenJob.model_validate(document | gates).embedder is not None
    with pytest.raises(ValidationError, match="new_candidate_class needs features"):
        ScreenJob.model_validate(document | gates | {"embedder": None})
