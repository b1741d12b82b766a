"""README and docs/ are true: every block of code in them is run, or held against what would run it."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
import yaml
from gradosr.jobs import cli as jobs
from PIL import Image
from sklearn.linear_model import LogisticRegression
from test_bundle import made

from gradosr.config import FitJob, OsrProtocol, ScoreJob, ScreenJob
from gradosr.results.part import schema
from gradosr.store import Store

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(DOCS.rglob("*.md"))
MODELS = {"fit": FitJob, "score": ScoreJob, "screen": ScreenJob, "evaluate": OsrProtocol}


class Block(NamedTuple):
    page: str
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*tags: str) -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if not tags or block.tag in tags]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE):
        line = text[: found.start()].count("\n") + 1
        yield Block(str(page.relative_to(ROOT)), line, found[2], textwrap.dedent(found[3]))


def commands(text: str) -> list[list[str]]:
    """Return the command lines in a block, without comments and redirections; one may go on after a backslash."""
    lines = re.sub(r" > \S+$", "", text.replace("\\\n", " "), flags=re.MULTILINE).splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def takes(words: list[str], *, whole: bool = True) -> None:
    """Hold a command line against click: all of it, or if it stands in a sentence the options that it names."""
    command: click.Command = jobs.cli
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, " ".join(words)
        command = found
    if whole:
        command.make_context(words[0], rest)  # raises on unknown options and missing arguments
    named = {word.partition("=")[0] for word in rest if word.startswith("-")} - {"--help", "-h", "--version"}
    assert named <= {name for option in command.params for name in option.opts}, " ".join(words)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.tag for block in blocks()} <= {"yaml", "sh", "python", "text"}
    assert not [str(block) for block in blocks("text") if re.search(r"^\$? *gradosr ", block.text, re.MULTILINE)]


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_every_yaml_block_is_a_job(block: Block) -> None:
    kind = re.match(r"# (\w+?)[-.]", block.text)
    assert kind, f"{block}: the first line names the file, such as # fit.yaml"
    MODELS[kind[1]].model_validate(yaml.safe_load(block.text))


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_every_command_of_a_shell_block_is_one(block: Block) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(block.text):
        if words[0] == "gradosr":
            takes(words)
        elif words[0] == "make":
            assert words[1] in targets, words
        else:
            assert words[0] in ("pip", "uv"), f"{block}: {words[0]} is run by no test"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_a_sentence_is_one(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for code in re.findall(r"`(gradosr [^`]+)`", text):
        takes(shlex.split(code), whole=False)


@pytest.mark.parametrize("block", [block for block in blocks("python") if "ray.data" not in block.text], ids=str)
def test_every_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos" / "new", 4)
    made().save(Store(), f"{tmp_path}/bundle/")
    exec(compile(block.text.replace("s3://models/animals-v3/", f"{tmp_path}/bundle/"), str(block), "exec"), {})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves sockets and log files to the collector
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # Ray Data sets what it calls so
def test_the_block_on_ray_data_runs(tmp_path: Path) -> None:
    import ray

    (block,) = [block for block in blocks("python") if "ray.data" in block.text]
    made().save(Store(), f"{tmp_path}/bundle/")
    images = [path.read_bytes() for path in pictures(tmp_path / "photos", 4)]
    (tmp_path / "archive").mkdir()
    pq.write_table(pa.table({"image": images}), tmp_path / "archive" / "0.parquet")
    code = block.text
    places = {"models/animals-v3/": "bundle/", "archive/2026/": "archive/", "results/2026/": "scored/"}
    for uri, folder in places.items():
        code = code.replace(f"s3://{uri}", f"{tmp_path}/{folder}")
    code = code.replace("size=4", "size=1")  # each loads torch
    ray.init("local", num_cpus=4, include_dashboard=False)  # never one that is at work here already
    try:
        exec(compile(code, str(block), "exec"), {})
    finally:
        ray.shutdown()
    scored = pa.concat_tables([pq.read_table(path) for path in (tmp_path / "scored").glob("*.parquet")])
    assert scored["status"].to_pylist() == ["ok"] * 4


def pictures(folder: Path, number: int, hue: int = 0, first: int = 1) -> list[Path]:
    """Write photographs of a kind: smooth, of about one colour; hue 3 is grey."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:04}.jpg" for i in range(first, first + number)]
    for seed, path in enumerate(paths, first):
        coarse = np.random.default_rng((hue, seed)).integers(0, 90, (6, 6, 3), dtype=np.uint8)
        coarse[:, :, hue if hue < 3 else slice(None)] += 150
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(body := io.BytesIO(), "JPEG")
        path.write_bytes(body.getvalue())
    return paths


# --- The tutorial ---

SPECIES = ("cat", "dog", "horse")


def checkpoint(path: Path) -> None:
    """Save a ResNet-18 with random features whose last layer tells the species apart."""
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=len(SPECIES)).eval()
    transform, last = weights.transforms(), net.fc
    net.fc = torch.nn.Identity()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        seen = [pictures(Path(folder) / name, 16, hue, first=1000) for hue, name in enumerate(SPECIES)]
        x = net(torch.stack([transform(Image.open(path)) for paths in seen for path in paths]))
    probe = LogisticRegression(C=1e-2, max_iter=1000).fit(x, np.repeat(range(len(SPECIES)), 16))
    last.load_state_dict({"weight": torch.tensor(probe.coef_), "bias": torch.tensor(probe.intercept_)})
    net.fc = last
    torch.save(net.state_dict(), path)


def answer(sheet: Path, labels: Path) -> None:
    """Label the pictures of a sheet as their folders are called, as a person would who looks at them."""
    with sheet.open(newline="", encoding="utf-8-sig") as file:
        rows = [{**row, "label": row["key"].split("/")[0]} for row in csv.DictReader(file)]
    with labels.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # thirteen commands, each of which loads torch or starts Ray
def test_the_tutorial_works_as_it_stands(tmp_path: Path) -> None:
    checkpoint(tmp_path / "resnet18.pt")
    for hue, name in enumerate(SPECIES):
        pictures(tmp_path / "photos" / "known" / name, 40, hue)
        pictures(tmp_path / "photos" / "new" / name, 10, hue, first=500)
    pictures(tmp_path / "photos" / "new" / "owl", 30, hue=3)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    lines = [line for block in blocks_of(DOCS / "tutorial.md") for line in block.text.splitlines()]
    assert sum(line.startswith("gradosr ") for line in lines) >= 12
    for line in lines:
        if line.startswith("pip "):
            continue
        if "--import labels.csv" in line and not (tmp_path / "labels.csv").exists():
            answer(tmp_path / "labelling" / "sheet.csv", tmp_path / "labels.csv")
        command = ["bash", "-c", line]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}{ran.stderr}"
    assert (tmp_path / "audit" / "index.html").stat().st_size > 10_000
    audit = json.loads((tmp_path / "audit-labelled" / "audit.json").read_text(encoding="utf-8"))
    assert audit["groups"]


# --- What the pages list ---


def test_the_readme_is_short_and_shows_the_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "(docs/audit.png)" in text


def test_every_column_of_a_part_is_explained() -> None:
    rows = re.findall(r"^\| (`.*?) \| ", (DOCS / "reference" / "results.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    stored = {"representation", "features", "logits", "middle", "log_norms"}
    assert set(schema().names) | stored <= named


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    told = {
        int(number) for codes in re.findall(r"^\| ([\d, ]+) \| ", text, re.MULTILINE) for number in codes.split(",")
    }
    names = ("DONE", "FAILED", "USAGE", "INPUT", "INCOMPLETE", "TRIPPED", "ACTIVE", "INTERRUPTED")
    assert told == {getattr(jobs, name) for name in names} | {143}


# --- The site ---


def build(folder: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_site_is_built_without_a_dead_link_and_its_reference_is_whole(tmp_path: Path) -> None:
    built = build(ROOT, tmp_path)
    assert built.returncode == 0, built.stderr + built.stdout
    commands_page = (tmp_path / "reference" / "cli.html").read_text(encoding="utf-8")
    assert all(f"<h2 id=gradosr-{name}" in commands_page.replace('"', "") for name in jobs.COMMANDS)
    for page, model in (("fit", FitJob), ("score", ScoreJob), ("screen", ScreenJob), ("protocol", OsrProtocol)):
        text = (tmp_path / "reference" / f"{page}.html").read_text(encoding="utf-8")
        assert all(f"<td><code>{field}</code></td>" in text for field in model.model_fields)


@pytest.mark.slow
def test_a_dead_link_fails_the_build(tmp_path: Path) -> None:
    kept = shutil.ignore_patterns(".*", "site", "tests", "demo", "dist", "build", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "tree", ignore=kept)
    with (tmp_path / "tree" / "README.md").open("a", encoding="utf-8") as readme:
        readme.write("\n[gone](docs/cost.md#gone)\n")
    built = build(tmp_path / "tree", tmp_path / "site")
    assert built.returncode != 0
    assert "cost.md#gone" in built.stderr + built.stdout
