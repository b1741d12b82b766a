"""Imports go one way, and each foreign system has its room."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "gradosr").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))

# From the bottom up; a package may import what stands before it.
LAYERS = (
    "errors text versions", "config", "store", "archive", "gradients", "representations", "detectors", "classifier",
    "bundle", "results", "scoring", "explanation", "run", "schedules", "audit", "labels", "comparison", "python",
    "fit", "lab",
)  # fmt: skip
MOST_AT_THE_ROOT = 3
MOST_LINES = 350
ROOMS = {
    "ray": {
        "lab/benchmark/peer.py",
        "run/driver/__init__.py",
        "run/driver/actor.py",
        "run/driver/cluster.py",
        "run/driver/prometheus.py",
        "run/driver/ray_errors.py",
        "run/driver/watch.py",
        "run/submission.py",
    },
    "boto3": {"store/s3.py"},
    "botocore": {"store/s3.py", "store/s3_contents.py", "store/s3_errors.py"},
    "rich": {"run/console.py"},
    "timm": {"classifier/architectures/timm.py"},
    "triton": {"gradients/fused.py", "gradients/triton_kernels.py"},
    "matplotlib": {"lab/evaluation/plots.py"},
    "transformers": {"classifier/architectures/transformers.py"},
    "jinja2": {"audit/report.py"},
    "click": set(),
}


def imported(path: Path) -> set[str]:
    """Full names of all modules imported anywhere in a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names if node.module == "gradosr"}
    return names


def layer(module: str) -> int:
    """Place of gradosr.X from the bottom."""
    return next(i for i, line in enumerate(LAYERS) if module in line.split())


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT / "gradosr")
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "gradosr" and len(parts) > 1 and parts[1] != own:
            assert layer(parts[1]) < layer(own), f"{relative} imports {name}"


@pytest.mark.parametrize("system", ROOMS)
def test_each_foreign_system_has_its_room(system: str) -> None:
    found = {
        str(path.relative_to(ROOT / "gradosr"))
        for path in LIBRARY
        if any(name.split(".")[0] == system for name in imported(path))
    }
    assert found == ROOMS[system]


def test_jobs_import_heavy_things_inside_their_bodies() -> None:
    light = {"collections", "contextlib", "dataclasses", "functools", "pathlib", "types", "typing"}
    for path in JOBS:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in light


def test_the_library_does_not_print() -> None:
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"), path


def test_parquet_is_read_on_no_thread_of_arrows() -> None:
    """One that still holds a Python file, or its bytes, aborts a Python that exits; `read_table` always has some."""
    for path in (path for path in LIBRARY if "lab" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "read_table", path
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert node.func.attr != "ParquetFile" or given.get("pre_buffer") == "False", path
                assert node.func.attr != "iter_batches" or given.get("use_threads") == "False", path


def test_modules_and_functions_stay_short() -> None:
    """A kernel of Triton's is one program, which cannot be divided."""
    for path in (*LIBRARY, *JOBS):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and path.name != "triton_kernels.py":
                assert node.end_lineno - node.lineno < 40, f"{path}: {node.name}"
