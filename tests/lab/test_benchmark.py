"""gradosr bench: figures of a tiny network; which figure is how large is the machine's business."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradosr.jobs.cli import run
from tiny import local_job, write_archive
from torch import Tensor, nn

from gradosr.gradients import GradientEngine
from gradosr.gradients.slow import slow_squared_norms
from gradosr.lab import conformance
from gradosr.lab.benchmark import contenders, cost, device_facts, device_job, engine, memory, tables
from gradosr.lab.benchmark.tables import BEGIN, END
from gradosr.scoring import memory as process_memory
from gradosr.store import Store

TINY = "torchvision:squeezenet1_1"
NAMES = {"forward", "training step", "gradosr", "batch-of-one loop", "vmap"}
MEGABYTE = 1 << 20

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gradosr(capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured here, not in children that load torch anew."""

    def here(name: str, *, place: torch.device, **workload: Any) -> memory.Peak | None:
        return memory._peak(name, device=place.type, **workload)

    monkeypatch.setattr(engine, "peak_memory", here)


# --- Figures ---


@pytest.mark.slow
def test_every_contender_is_measured(gradosr: Command, in_process: None) -> None:
    code, out, err = gradosr("bench", "engine", "--arch", TINY, "--size", 64, "--batch", 4, "--runs", 1, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    for figures in ("images_per_second", "of_training_step", "memory_bytes", "peak_bytes", "memory_of_training_step"):
        assert set(facts[figures]) == NAMES
    assert facts["of_training_step"]["training step"] == facts["memory_of_training_step"]["training step"] == 1.0
    assert 0 < facts["largest_difference"] < 1e-3
    assert all(facts["peak_bytes"][name] > facts["memory_bytes"][name] for name in NAMES)
    assert (facts["failed"], facts["fallback_parameters"]) == ({}, [])


@pytest.mark.slow
def test_memory_is_measured_in_children(gradosr: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES - {"training step", "gradosr"}:  # a child takes seconds to load torch
        monkeypatch.delitem(contenders.CONTENDERS, name)
    code, out, err = gradosr("bench", "engine", "--arch", TINY, "--size", 64, "--batch", 4, "--runs", 1, "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert set(facts["memory_bytes"]) == {"training step", "gradosr"}
    assert all(facts["peak_bytes"][name] > size > 0 for name, size in facts["memory_bytes"].items())


@pytest.mark.slow
def test_all_contenders_have_one_layout_and_one_precision(gradosr: Command, in_process: None) -> None:
    given = contenders.workload(TINY, 32, 2, torch.device("cpu"), "bfloat16")
    convolutions = [parameter for parameter in given.classifier.parameters() if parameter.dim() == 4]
    assert given.engine.classifier is given.classifier
    for tensor in (given.images_BCHW, *convolutions):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    size = ("--size", 32, "--batch", 2, "--runs", 1, "--precision", "bfloat16", "--json")
    code, out, err = gradosr("bench", "engine", "--arch", TINY, *size)
    facts = json.loads(out)
    assert (code, err, facts["precision"]) == (0, "", "bfloat16")
    assert set(facts["images_per_second"]) == NAMES
    assert facts["largest_difference"] > 1e-4  # to float32


@pytest.mark.slow
def test_the_table_is_for_people(gradosr: Command, in_process: None) -> None:
    code, out, _ = gradosr("bench", "engine", "--arch", TINY, "--size", 32, "--batch", 2, "--runs", 1)
    assert code == 0
    assert "squeezenet1_1, 32 pixels, batch 2" in out
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in NAMES)


@pytest.mark.skipif(not (process_memory.PROC / "clear_refs").exists(), reason="the system keeps no peak")
def test_peak_memory_is_what_the_batch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(given: contenders.Workload) -> contenders.Prepared:
        torch.ones(300 * MEGABYTE // 4)  # preparing is not counted
        return contenders.Prepared(lambda: torch.ones(100 * MEGABYTE // 4), given.images_BCHW)

    monkeypatch.setitem(contenders.CONTENDERS, "hungry", hungry)
    peak = memory._peak("hungry", TINY, 32, 1, "cpu")
    assert peak is not None
    assert 95 * MEGABYTE < peak.beyond < 130 * MEGABYTE
    assert peak.resident > peak.beyond


def test_a_system_that_keeps_no_peak_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_memory, "PROC", tmp_path / "none")
    assert memory._peak("forward", TINY, 32, 1, "cpu") is None
    monkeypatch.setattr(engine, "peak_memory", lambda *what, **more: None)
    facts = engine.bench_engine(TINY, 32, 2, 1, "cpu")
    assert facts["memory_bytes"] == facts["memory_of_training_step"] == {}
    assert set(facts["images_per_second"]) == NAMES
    assert "-" in tables.table(facts)


@pytest.mark.slow
def test_vmap_that_cannot_serve_is_a_reason(
    gradosr: Command, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "VMAP_BYTES", 1000)
    arguments = ("bench", "engine", "--arch", TINY, "--size", 32, "--batch", 2, "--runs", 1)
    code, out, _ = gradosr(*arguments, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["failed"] == {"vmap": "the gradients of one image take 0.0 GB"}
    assert set(facts["images_per_second"]) == set(facts["memory_bytes"]) == NAMES - {"vmap"}
    assert "vmap                failed: the gradients of one image" in gradosr(*arguments)[1]


@pytest.mark.slow
def test_a_child_that_dies_is_a_reason_or_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MemoryError, match="its process died on a batch of 2"):
        memory.peak_memory("forward", TINY, 32, 2, _Deadly())  # type: ignore[arg-type]
    failed: dict[str, str] = {}

    def dies() -> None:
        raise MemoryError("its process died")

    assert engine._attempt("vmap", failed, dies) is None
    assert failed == {"vmap": "its process died"}
    with pytest.raises(engine.ClassifierError, match="training step: its process died"):
        engine._attempt("training step", failed, dies)


class _Exits(str):
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[object, ...]:
        return sys.modules["os"]._exit, (1,)


class _Deadly:
    type = _Exits("cpu")


def test_vmap_and_the_loop_compute_the_same_gradients() -> None:
    given = contenders.workload(TINY, 32, 2, torch.device("cpu"))
    slow = slow_squared_norms(given.classifier, given.images_BCHW)
    assert (slow > 0).all()
    found: list[list[Tensor]] = []
    contenders_norm = contenders.squared_norm

    def noted(gradient_B: Tensor) -> Tensor:
        norm = contenders_norm(gradient_B)
        found[-1].append(norm)
        return norm

    found.append([])
    prepared = contenders.vmap(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contenders, "squared_norm", noted)
        prepared.work()
    torch.testing.assert_close(torch.stack(found[0], 1).double(), slow, rtol=1e-4, atol=1e-9)


def test_a_slow_contender_takes_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SLOW", -1.0)
    seconds = engine._rounds(contenders.workload(TINY, 32, 2, torch.device("cpu")), 4, {})
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(NAMES, engine.FEW)


@pytest.mark.slow
def test_it_needs_neither_ray_nor_boto3() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('ray', 'boto3', 'botocore'))); "
        "from gradosr.jobs.cli import run; "
        f"code = run('bench engine --arch {TINY} --size 32 --batch 2 --runs 1 --explain --json'.split()); "
        "import gradosr.lab.benchmark.gpu, gradosr.lab.benchmark.memory, gradosr.lab.benchmark.tables; sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["arch"] == TINY


# --- --explain ---


@pytest.mark.slow
def test_explain_names_the_rule_of_every_parameter(gradosr: Command) -> None:
    arch = ("--arch", "torchvision:mobilenet_v3_small", "--size", 32, "--batch", 2)
    code, out, _ = gradosr("bench", "engine", *arch, "--explain", "--json")
    parameters = json.loads(out)["parameters"]
    assert code == 0
    assert [one["parameter"] for one in parameters] == [
        name for name, _ in contenders.workload(arch[1], 32, 1, torch.device("cpu")).classifier.named_parameters()
    ]
    rules = {one["rule"] for one in parameters}
    assert rules <= {"conv2d", "batch_norm", "conv2d + batch_norm", "linear"}
    assert {"conv2d + batch_norm", "linear"} <= rules
    assert all(one["milliseconds"] > 0 for one in parameters)
    assert any(one["form"] in one["measured"] for one in parameters)
    code, out, _ = gradosr("bench", "engine", *arch, "--explain")
    assert len(out.splitlines()) == 1 + len(parameters)


class Odd(nn.Module):
    """A parameter of every fate: shared, derived, without a rule, without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(12, 12)
        self.derived = nn.utils.parametrizations.weight_norm(nn.Linear(12, 12))
        self.without_rule = nn.Parameter(torch.rand(12))
        self.unused = nn.Parameter(torch.rand(2))
        self.head = nn.Linear(12, 3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        hidden = self.derived(self.shared(self.shared(images_BCHW.flatten(1))))
        return self.head(torch.where(hidden > 0, hidden, hidden.pow(2) ** self.without_rule))


def test_explain_tells_the_fate_of_odd_parameters() -> None:
    torch.manual_seed(0)
    explained = GradientEngine(Odd().eval()).explain(torch.randn(4, 3, 2, 2))
    rules = {one.parameter: one.rule for one in explained}
    assert rules == {
        "without_rule": "fallback",
        "unused": "no gradient",
        "shared.weight": "2 x linear",
        "shared.bias": "2 x linear",
        "derived.bias": "linear",
        "derived.parametrizations.weight.original0": "linear of derived",
        "derived.parametrizations.weight.original1": "linear of derived",
        "head.weight": "linear",
        "head.bias": "linear",
    }
    cost = {one.parameter: one.milliseconds for one in explained}
    assert cost["without_rule"]
    assert cost["head.weight"]
    assert cost["unused"] is None


# --- --conformance ---


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    listed = [TINY, "torchvision:no_such", "torchvision:shufflenet_v2_x0_5"]
    monkeypatch.setattr(conformance, "architectures", lambda _: listed)
    return listed


@pytest.mark.slow
def test_conformance_is_one_line_per_architecture(gradosr: Command, three: list[str]) -> None:
    del three[1]
    code, out, _ = gradosr("bench", "engine", "--conformance", "torchvision")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[:-1]] == three
    assert all(line.endswith("conforms") for line in lines[:-1])
    assert lines[-1] == "torchvision: 2 of 2 architectures conform"


@pytest.mark.slow
def test_a_failing_architecture_does_not_stop_the_others(gradosr: Command, three: list[str]) -> None:
    code, out, err = gradosr("bench", "engine", "--conformance", "torchvision", "--json")
    document = json.loads(out)
    assert code == 1
    assert [one["arch"] for one in document["architectures"]] == three
    assert [one["conforms"] for one in document["architectures"]] == [True, False, True]
    assert "no classifier of that name" in document["architectures"][1]["reason"]
    assert (document["count"], document["conforming"]) == (3, 2)
    assert len(err.splitlines()) == 3


@pytest.mark.slow
def test_a_wrong_norm_does_not_conform(gradosr: Command, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del three[1:]
    monkeypatch.setattr(conformance, "slow_squared_norms", lambda *what: 1.01 * slow_squared_norms(*what))
    code, out, _ = gradosr("bench", "engine", "--conformance", "torchvision")
    assert code == 1
    assert "DOES NOT CONFORM" in out
    assert out.splitlines()[-1] == "torchvision: 0 of 1 architectures conform"


def test_a_figure_that_is_none_is_null() -> None:
    one = conformance.Conformance(TINY, 64, 2, float("nan"), 0.5, 1, (), 0)
    assert not one.conforms
    assert json.loads(json.dumps(conformance.facts(one), allow_nan=False))["float64"] is None


# --- gpu ---


@pytest.mark.slow
def test_every_section_of_gpu_leaves_facts_or_a_reason(gradosr: Command, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    code, _, err = gradosr("bench", "gpu", out, "--small", "--device", "cpu")
    facts = json.loads(out.read_text(encoding="utf-8"))
    assert code == 0
    assert list(facts["seconds"]) == [name for name in facts if name != "seconds"]
    assert len(err.splitlines()) == len(facts["seconds"])
    reasons = {name: found for name, found in facts.items() if not isinstance(found, dict)}
    assert {name for name, reason in reasons.items() if reason == "needs CUDA"} == {
        *("profile", "waits of the engine", "CUDA graph", "second worker")
    }
    assert [name for name, reason in reasons.items() if reason != "needs CUDA"] == ["mobilenet_v3_small, tf32, batch 2"]
    speed = facts["mobilenet_v3_small, bfloat16, batch 2"]
    assert speed["training step"]["of training step"] == 1.0
    assert speed["engine, 2 objectives"]["images/s"] > 0
    assert 0 < facts["accuracy of squeezenet1_1"]["float32"]["engine"]["largest"] < 1e-2
    assert facts["job, one_class"]["batch 2"]["decoding and scoring, images/s"] > 0
    assert all(row["calls"] and row["in use"] for row in facts["forms of squeezenet1_1"]["by geometry"].values())


def test_a_section_that_fails_or_is_late_leaves_its_reason(tmp_path: Path) -> None:
    said: list[str] = []
    record = device_facts.Record(tmp_path / "out.json", 1e9, said.append)
    record.section("wrong", lambda: 1 / 0)
    record.section("right", lambda: {"a": 1.23456, 2: [math.nan]})
    device_facts.Record(tmp_path / "late.json", -1, said.append).section("late", lambda: 1)
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["wrong"].startswith("ZeroDivisionError at test_benchmark.py:")
    assert facts["right"] == {"a": 1.235, "2": ["nan"]}
    assert json.loads((tmp_path / "late.json").read_text())["late"].startswith("not begun")
    assert len(said) == 3


def test_a_busy_device_is_counted_once() -> None:
    assert device_facts.covered([(0, 2), (1, 3), (1, 2), (5, 6)]) == 4


@pytest.mark.slow
def test_a_second_worker_is_measured() -> None:
    meter = device_facts.Meter(torch.device("cpu"), runs=1, warm=0)
    facts = device_job.second_worker(TINY, 32, 2, "bfloat16", meter, 0.1)
    assert facts["two, of one"] == pytest.approx(sum(facts["two, each"]) / facts["one"])


def test_gpu_needs_a_gpu(gradosr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = gradosr("bench", "gpu", tmp_path / "gpu.json")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not (tmp_path / "gpu.json").exists()


# --- The table of docs/cost.md ---


@pytest.mark.slow
def test_the_table_takes_its_place_in_a_page(
    gradosr: Command, in_process: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "CONFIGURATIONS", [(TINY, 32, 2), (TINY, 48, 2)])
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert gradosr("bench", "table", readme, "--runs", 1)[:2] == (0, "")
    text = readme.read_text()
    assert text.startswith(f"before\n\n{BEGIN}\nImages per second on ")
    assert text.endswith(f"|\n{END}\n\nafter\n")
    assert "old" not in text
    assert torch.__version__ in text
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| squeeze")] == [
        "| squeezenet1_1, 32 pixels, batch 2",
        "| squeezenet1_1, 48 pixels, batch 2",
    ]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    monkeypatch.setattr(engine, "CONFIGURATIONS", [(TINY, 32, 2)])
    assert gradosr("bench", "table", readme, "--runs", 1)[0] == 0  # and again


def test_the_page_on_cost_has_a_place_for_the_table(gradosr: Command, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cost.md").read_text(encoding="utf-8")
    tables.check_marked(text, "docs/cost.md")
    (tmp_path / "x.md").write_text("nothing")
    code, out, err = gradosr("bench", "table", tmp_path / "x.md")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert BEGIN in err


# --- Bad input ---

MISTAKES: dict[str, tuple[list[object], str]] = {
    "unknown architecture": (["--arch", "torchvision:resnet19"], "did you mean resnet18?"),
    "no library": (["--arch", "resnet18"], "arch resnet18: expected torchvision:NAME"),
    "too small": (["--arch", TINY, "--size", 8], f"{TINY} does not take 8x8 pixels: "),
    "fixed size": (["--arch", "torchvision:vit_b_32", "--size", 32], "torchvision:vit_b_32 does not take 32x32 pixels"),
    "no images": (["--batch", 0], "Invalid value for '--batch'"),
    "no runs": (["--runs", 0], "Invalid value for '--runs'"),
    "unknown library": (["--conformance", "keras"], "Invalid value for '--conformance'"),
    "tf32 without CUDA": (["--precision", "tf32", "--device", "cpu"], "tf32, which only CUDA devices have"),
    "two at once": (["--conformance", "timm", "--explain"], "one at a time"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake: str, gradosr: Command) -> None:
    arguments, message = MISTAKES[mistake]
    code, out, err = gradosr("bench", "engine", *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_driver_alone_is_measured_over_a_whole_run(gradosr: Command) -> None:
    code, out, err = gradosr("bench", "driver", "--shards", 30, "--workers", 1, "--json")
    facts = json.loads(out)
    assert code == 0, err
    assert (facts["shards"], facts["left"]) == (30, 0)
    assert facts["driver_ms_per_shard"] > 0
    assert facts["null_ms_per_shard"] > 0
    assert facts["listings"] == facts["recognised_listings"] == 6  # of the archive, and five places of the results


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*deprecated:DeprecationWarning", "ignore:.*concurrent")
def test_a_job_is_measured_beside_what_bounds_it(
    gradosr: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gradosr.lab.benchmark import job, peer  # which import Ray

    monkeypatch.setattr(job, "settings", lambda *what: peer.settings(*what)[:1])
    write_archive(Store(), f"{tmp_path}/archive", shards=3, images=70)
    config = tmp_path / "job.yaml"
    config.write_text(local_job(tmp_path, batch_size=64).model_dump_json(exclude_unset=True))
    code, out, err = gradosr("bench", "job", "--config", config, "--shards", 3, "--rounds", 2, "--threads", 1, "--json")
    facts = json.loads(out)
    contenders = {job.ENGINE, job.LOADING, job.JOB, job.PEER}
    assert code == 0, err
    assert set(facts["images_per_second"]) == set(facts["by_round"]) == contenders
    assert set(facts["job_by"]) == contenders - {job.JOB}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in facts["by_round"].values())
    paired = zip(facts["by_round"][job.JOB], facts["by_round"][job.ENGINE], strict=True)
    assert facts["job_by"][job.ENGINE] == pytest.approx(sum(mine / other for mine, other in paired) / 2)
    assert set(facts["job_stages"]) == {"read", "decode", "score", "write"}
    assert [(one["batch_size"], one["actors"], one["threads"]) for one in facts["peers"]] == [(64, 1, 1)]
    table = job.job_table(facts)
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in contenders)


def test_the_cost_of_an_archive_is_told_in_forward_passes_and_money(gradosr: Command) -> None:
    given = ("bench", "cost", "--arch", TINY, "--size", 32, "--batch", 2, "--runs", 1)
    code, out, err = gradosr(*given, "--price", 3)
    assert (code, err) == (0, "torchvision:squeezenet1_1, 32 pixels, batch 2\n")
    *_, rule, forward, energy, ours, paper = out.splitlines()
    assert rule == "|---|---|---:|---:|---:|---:|"
    assert forward.startswith("| squeezenet1_1, 32 pixels, batch 2 | forward pass | 1.00 | ")
    assert [line.split(" | ")[1] for line in (energy, ours, paper)] == [
        "energy", "one_class (default)", "transfer (the paper's)",
    ]  # fmt: skip
    facts = json.loads(gradosr(*given, "--json")[1])
    rates = facts["networks"][0]["images_per_second"]
    table = cost.cost_table(facts, 3.0).splitlines()
    hours, price = (float(cell.replace(",", "")) for cell in table[-1].strip("| ").split(" | ")[-2:])
    assert hours == pytest.approx(1e8 / rates["transfer (the paper's)"] / 3600, abs=1)
    assert price == pytest.approx(3 * hours, abs=3)


def test_a_job_that_cannot_be_measured_is_one_clear_line(gradosr: Command, tmp_path: Path) -> None:
    code, out, err = gradosr("bench", "job", "--shards", 2, "--workers", 2)
    assert (code, out) == (2, "")
    assert err == "gradosr: --shards 2: the first shard of each of 2 workers is not counted; ask for more\n"
    assert gradosr("bench", "job", "--config", tmp_path / "no.yaml")[0] == 2
