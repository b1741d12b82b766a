"""The installed wheel has one top-level name: a `jobs` package in a working directory does it no harm."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESOURCES = (".html", ".css", ".js")


def test_every_package_of_the_tree_is_listed() -> None:
    listed = set(re.findall(r'^    "(gradosr[\w.]*)",$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M))
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "gradosr").rglob("*.py")}
    assert listed == {".".join(folder.parts) for folder in folders} | {"gradosr.jobs"}


@pytest.mark.slow
def test_the_wheel_works_beside_a_jobs_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns(".*", "demo", "tests", "__pycache__", "build", "dist", "site", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=skipped)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = (source / "dist").glob("*.whl")
    site, here = tmp_path / "site", tmp_path / "here"
    with zipfile.ZipFile(wheel) as archive:
        assert {name.split("/")[0].split("-")[0] for name in archive.namelist()} == {"gradosr"}
        resources = [path for path in (ROOT / "gradosr").rglob("*") if path.suffix in RESOURCES]
        assert len(resources) >= 9
        assert {str(path.relative_to(ROOT)) for path in resources} <= set(archive.namelist())
        archive.extractall(site)
    (here / "jobs").mkdir(parents=True)
    (here / "jobs" / "__init__.py").write_text("raise SystemExit('the wrong jobs')")
    code = "import gradosr.jobs.cli as c; assert c.__file__.startswith(%r), c.__file__; c.run(['score', '--help'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(site)])}
    command = [sys.executable, "-c", code % str(site)]
    ran = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "Score an archive into a results folder" in ran.stdout
