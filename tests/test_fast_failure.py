"""Missing things are told before anything heavy is imported."""

import subprocess
import sys

import pytest
import yaml

HEAVY = ("pandas", "pyarrow", "ray", "scipy", "sklearn", "torch")
FIT = {
    "classifier": {"arch": "torchvision:resnet18", "weights": "nowhere.pt", "classes": ["cat", "dog"]},
    "input": {"kind": "images", "uri": "nowhere/"},
    "detector": {"kind": "one_class"},
    "bundle": "bundle",
}
SCORE = {"bundle": "nobundle", "input": {"kind": "images", "uri": "nowhere"}, "output": "results"}
PROTOCOL = {
    **{"input": FIT["input"], "test": FIT["input"], "output": "osr", "detectors": {"a": FIT["detector"]}},
    "tasks": [{"name": "a", "classifier": FIT["classifier"]}],
}
CONFIGS = {
    "fit.yaml": FIT,
    "listed.yaml": FIT | {"classifier": FIT["classifier"] | {"classes": "nowhere.json"}, "held_out": "nowhere.txt"},
    "folder.yaml": FIT | {"classifier": {"arch": "hf:nofolder"}},
    "code.yaml": FIT | {"classifier": FIT["classifier"] | {"arch": "no_such_package.nets:make"}},
    "transfer.yaml": FIT | {"detector": {"kind": "transfer", "weights": "nofirst.pt"}},
    "score.yaml": SCORE,
    "embedder.yaml": SCORE | {"embedder": {"arch": "torchvision:resnet18", "weights": "nosecond.pt"}},
    "screen.yaml": SCORE | {"gates": {"bad_images": 1}},
    "osr.yaml": PROTOCOL,
}
NO_RESULTS, NO_BUNDLE = "noresults: no results there", "nobundle: no bundle there"
MISSING: dict[str, tuple[int, str]] = {
    "fit no.yaml": (2, "no.yaml: no such file"),
    "fit fit.yaml": (4, "nowhere.pt: no such file or folder\n"),
    "fit listed.yaml": (4, "nowhere.txt: no such file or folder\n"),
    "fit folder.yaml": (4, "nofolder: no model folder there (no config.json)"),
    "fit code.yaml": (2, "no_such_package.nets:make: no module no_such_package is found"),
    "fit transfer.yaml": (4, "nofirst.pt: no such file or folder"),
    "check no.yaml": (2, "no.yaml: no such file"),
    "check fit.yaml": (4, "nowhere/: no such file or folder"),
    "check score.yaml": (4, NO_BUNDLE),
    "check nobundle": (4, NO_BUNDLE),
    "score no.yaml": (2, "no.yaml: no such file"),
    "score score.yaml": (4, "nowhere/: no such file or folder"),
    "score embedder.yaml": (4, "nosecond.pt: no such file or folder"),
    "rescore noresults --bundle nobundle --out out": (4, NO_RESULTS),
    "submit no.yaml": (2, "no.yaml: no such file"),
    "submit score.yaml": (2, "output: "),
    "status noresults": (4, NO_RESULTS),
    "audit noresults --out out": (4, NO_RESULTS),
    "audit noresults --out out --set fdr=2": (2, "fdr"),
    "label noresults": (4, NO_RESULTS),
    "label noresults --import no.csv": (4, "no.csv: no such file or folder"),
    "learn nobundle --run noresults --out out": (4, NO_BUNDLE),
    "extend nobundle --run noresults --class x --out out": (4, NO_BUNDLE),
    "compare noresults others": (4, NO_RESULTS),
    "screen no.yaml": (2, "no.yaml: no such file"),
    "screen screen.yaml": (4, NO_BUNDLE),
    "schedule no.yaml --as crontab --cron 0": (2, "no.yaml: no such file"),
    "evaluate noresults": (4, NO_RESULTS),
    "evaluate no.yaml --protocol osr": (2, "no.yaml: no such file"),
    "evaluate osr.yaml --protocol osr": (4, "nowhere.pt: no such file or folder"),
    "pack nowhere out": (4, "nowhere/: no such file or folder"),
    "compact noresults --out out": (4, NO_RESULTS),
    "bench job --config no.yaml": (2, "no.yaml: no such file"),
    "audit a.bundle": (4, "a.bundle: a bundle, not results; `gradosr score` makes results with it"),
    "status a.bundle": (4, "a.bundle: a bundle, not results; `gradosr score` makes results with it"),
    "evaluate a.bundle": (4, "a.bundle: a bundle, not results; `gradosr score` makes results with it"),
    "check results": (4, "results: results, not a bundle; `gradosr fit` makes one"),
    "learn results --run results --out out": (4, "results: results, not a bundle; `gradosr fit` makes one"),
}
MARKS = {"a.bundle": "bundle.json", "results": "run.json"}
"""Folders that commands take for something else, each with the file by which it is known."""
RUN = """
import contextlib, io, json, sys
from gradosr.jobs.cli import run
for line in sys.stdin.read().splitlines():
    with contextlib.redirect_stderr(io.StringIO()) as told:
        code = run(line.split())
    print(json.dumps([code, told.getvalue(), sorted(set(%r) & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, stderr and heavy modules of each command, one after the other in one process that is new."""
    folder = tmp_path_factory.mktemp("missing")
    for name, document in CONFIGS.items():
        (folder / name).write_text(yaml.safe_dump(document))
    for name, mark in MARKS.items():
        (folder / name).mkdir()
        (folder / name / mark).touch()
    ran = subprocess.run(
        [sys.executable, "-c", RUN % (HEAVY,)], cwd=folder, input="\n".join(MISSING), capture_output=True, text=True,
        check=True, timeout=300,
    )  # fmt: skip
    assert not ran.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted([*CONFIGS, *MARKS])  # nothing was begun
    return dict(zip(MISSING, map(yaml.safe_load, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", MISSING)
def test_what_is_missing_is_told_without_heavy_imports(
    command: str, answers: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, told, heavy = answers[command]
    assert (code, heavy) == (MISSING[command][0], [])
    assert MISSING[command][1] in told
    assert all(line.startswith("gradosr: ") for line in told.splitlines()), told


def test_several_things_that_are_missing_are_told_together(answers: dict[str, tuple[int, str, list[str]]]) -> None:
    told = answers["fit listed.yaml"][1].splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in told] == [
        "nowhere.json", "nowhere.pt", "nowhere.txt", "",
    ]  # fmt: skip
