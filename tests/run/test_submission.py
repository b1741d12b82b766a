"""Jobs on a real Ray head with token authentication: submitted, watched, cancelled, resumed, and what goes wrong."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from gradosr.jobs.cli import run
from ray_head import Line, RayHead
from tiny import make_bundle, write_archive
from trickle import trickling

from gradosr.config import S3Settings
from gradosr.errors import InputError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.run import submission
from gradosr.store import Store

pytestmark = pytest.mark.slow

SHARDS, IMAGES = 20, 6
SECRET = "a-value-for-the-job-alone"


@dataclass
class Site:
    """A cluster, a bucket with an archive and a bundle, and how a user reaches both."""

    head: RayHead
    store: Store
    bucket: str
    environment: dict[str, str]
    folder: Path

    def config(self, name: str, **changes: Any) -> Path:
        """A score job as a file."""
        endpoint = self.environment["AWS_ENDPOINT_URL"]
        document = {
            "bundle": f"{self.bucket}/bundle",
            "input": {"kind": "tar", "uri": f"{self.bucket}/archive/"},
            "output": f"{self.bucket}/{name}",
            "workers": 1,
            "trust": ["tiny_net:sleepy"],
            "store": {"endpoint_url": endpoint, "addressing_style": "path"},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**document, **changes}))
        return path

    def start(self, *arguments: object, **environment: str) -> "subprocess.Popen[str]":
        """A gradosr command as a process of its own; an empty value of `environment` takes the variable away."""
        merged = {**self.environment, **self.head.client_environment(), "RAY_API_SERVER_ADDRESS": self.head.address}
        merged = {name: value for name, value in {**merged, **environment}.items() if value}
        command = [sys.executable, "-m", "gradosr.jobs.cli", *map(str, arguments)]
        return subprocess.Popen(command, env=merged, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: object, **environment: str) -> "Ended":
        return Ended.of(self.start(*arguments, **environment))

    def parts(self, name: str) -> dict[str, str]:
        """Part -> ETag."""
        return {stored.uri: stored.version for stored in self.store.list(f"{self.bucket}/{name}/parts/")}


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @classmethod
    def of(cls, process: "subprocess.Popen[str]") -> "Ended":
        out, err = process.communicate(timeout=170)
        return cls(process.returncode, out, err)


@pytest.fixture(scope="module")
def site(seaweedfs: SeaweedFS, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    drop = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_ADDRESS")
    environment = {name: value for name, value in os.environ.items() if name not in drop} | seaweedfs.environment()
    seaweedfs.create_bucket("submission")
    with pytest.MonkeyPatch.context() as patch, RayHead(environment) as head:
        for name, value in seaweedfs.environment().items():
            patch.setenv(name, value)
        store = Store(S3Settings(endpoint_url=seaweedfs.endpoint_url, addressing_style="path"))
        write_archive(store, "s3://submission/archive", SHARDS, IMAGES)
        make_bundle(store, "s3://submission/bundle", arch="tiny_net:sleepy")
        yield Site(head, store, "s3://submission", environment, tmp_path_factory.mktemp("site"))


def wait_until(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass
class Story:
    """A run that was submitted and cancelled midway, with what every command said."""

    job: str
    submitted: Ended
    again: Ended
    status: Ended
    run_status: Ended
    raw: dict[str, Any]
    cuts: int
    followed: Ended
    cancelled: Ended
    before: dict[str, str]
    """Its parts when it had ended."""


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    (site.folder / "jobs").mkdir()
    (site.folder / "jobs" / "__init__.py").write_text("raise SystemExit('the wrong jobs')")
    py_modules = [str(site.folder / "jobs")]
    config = site.config(
        "results", runtime_env={"env_vars": {"SECRET": SECRET, "NAP": "0.15"}, "py_modules": py_modules}
    )
    submitted = site.run("submit", config, "--json", "--name", "first try")
    assert submitted.code == 0, submitted.err
    job = json.loads(submitted.out)["id"]
    with Line(site.head.address) as line:
        following = site.start("logs", job, "-f", "--address", line.address)
        again = site.run("submit", config)
        wait_until(lambda: len(site.parts("results")) >= 1)
        cuts = line.cut()
        status, run_status = site.start("status", job, "--json"), site.start("status", f"{site.bucket}/results")
        status, run_status = Ended.of(status), Ended.of(run_status)
        raw = json.loads(site.head.get(f"/api/jobs/{job}"))
        cancelled = site.run("cancel", job, "--json")
        followed = Ended.of(following)
    before = site.parts("results")
    return Story(job, submitted, again, status, run_status, raw, cuts, followed, cancelled, before)


def test_a_job_is_named_by_config_and_bundle(story: Story, site: Site) -> None:
    assert re.fullmatch(r"gradosr-[0-9a-f]{12}-1", story.job)
    facts = json.loads(story.submitted.out)
    assert (facts["name"], facts["output"], facts["exit_code"]) == ("first try", f"{site.bucket}/results", None)


def test_a_second_submit_while_the_first_lives_is_refused(story: Story) -> None:
    assert (story.again.code, story.again.out) == (7, "")
    assert len(story.again.err.splitlines()) == 1
    assert f"{story.job}: the same run is" in story.again.err


def test_the_status_of_a_job_is_that_of_its_run_too(story: Story, site: Site) -> None:
    assert story.status.code == 0, story.status.err
    document = json.loads(story.status.out)
    assert (document["job"]["state"], document["job"]["exit_code"]) == ("RUNNING", None)
    assert document["run"]["output"] == f"{site.bucket}/results"
    assert 1 <= document["run"]["done"] < SHARDS


def test_the_status_of_a_run_needs_no_cluster(story: Story) -> None:
    assert story.run_status.code == 0, story.run_status.err
    assert "done" in story.run_status.out


def test_the_config_travels_without_secrets_and_weights(story: Story, site: Site) -> None:
    travelled = list(site.head.folder.glob("session_*/runtime_resources/working_dir_files/*/*"))
    assert {path.name for path in travelled} == {"job.yaml"}
    assert all(SECRET not in path.read_text() for path in travelled)
    assert SECRET not in json.dumps([story.raw["metadata"], story.raw["entrypoint"]])
    assert story.raw["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "90"  # drain_timeout and a margin


def test_a_broken_tail_loses_and_repeats_nothing(story: Story, site: Site) -> None:
    assert story.cuts >= 1
    assert story.followed.code == 0, story.followed.err
    whole = site.run("logs", story.job)
    assert whole.code == 0
    assert f"Running entrypoint for job {story.job}: gradosr score" in whole.out
    assert f"/{SHARDS} | images" in whole.out
    assert story.followed.out == whole.out


def test_a_cancelled_job_tells_what_is_left(story: Story) -> None:
    assert story.cancelled.code == 0, story.cancelled.err
    document = json.loads(story.cancelled.out)
    assert (document["job"]["state"], document["job"]["exit_code"]) == ("STOPPED", 143)
    assert document["run"]["state"] != "finished"
    assert document["run"]["done"] == len(story.before) < SHARDS


@pytest.mark.slow
def test_the_same_submit_resumes(story: Story, site: Site) -> None:
    resumed = site.run("submit", site.config("results"), "--wait")  # what its runtime_env was does not matter
    assert resumed.code == 0, resumed.err
    assert resumed.out.strip() == story.job.removesuffix("1") + "2"
    assert f"{SHARDS - len(story.before)} shards scored now" in resumed.err
    after = site.parts("results")
    assert len(after) == SHARDS
    assert story.before.items() <= after.items()
    success = json.loads(site.store.read(f"{site.bucket}/results/_SUCCESS"))
    assert (success["counts"]["rows"], len(success["parts"])) == (SHARDS * IMAGES, SHARDS)


def test_the_jobs_of_a_cluster_are_listed(story: Story, site: Site) -> None:
    found = site.run("status", "--address", site.head.address, RAY_API_SERVER_ADDRESS="http://127.0.0.1:9")
    assert found.code == 0, found.err
    assert [story.job, "STOPPED"] in [line.split()[:2] for line in found.out.splitlines()]


@pytest.mark.slow
def test_of_two_submits_at_once_one_is_refused_and_a_missing_gradosr_is_told(site: Site) -> None:
    config = site.config("raced", runtime_env={"env_vars": {"PATH": "/usr/bin:/bin"}})
    ended = [Ended.of(process) for process in [site.start("submit", config, "--wait") for _ in range(2)]]
    submitted, refused = sorted(ended, key=lambda one: one.code, reverse=True)
    assert (submitted.code, refused.code) == (127, 7)
    assert "gradosr is not installed on the cluster" in submitted.err.splitlines()[-1]
    assert "-1: " in refused.err
    assert len(refused.err.splitlines()) == 1


def test_what_the_cluster_refuses_is_one_line(site: Site) -> None:
    unknown, nobody = "gradosr-000000000000-1", {"HOME": str(site.folder)}
    cases: list[tuple[list[object], dict[str, str], int, str]] = [
        (["status"], {"RAY_AUTH_TOKEN": "wrong"}, 4, "RAY_AUTH_TOKEN"),
        (["status"], {"RAY_AUTH_TOKEN": "", **nobody}, 4, "RAY_AUTH_TOKEN"),
        (["logs", "-f", unknown], {}, 4, f"{unknown}: no such job"),
        (["submit", site.config("odd", runtime_env={"pip": 3})], {}, 2, "runtime_env: "),
    ]
    processes = [site.start(*arguments, **environment) for arguments, environment, _, _ in cases]
    for process, (arguments, _, code, message) in zip(processes, cases, strict=True):
        assert_one_line(Ended.of(process), code, message, arguments)


def test_what_is_wrong_before_a_cluster_is_asked_is_one_line(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", site.head.address)
    endpoint = site.environment["AWS_ENDPOINT_URL"]
    cases: list[tuple[list[object], int, str]] = [
        (["status"], 4, "RAY_AUTH_MODE=token"),  # this process has none
        (["status", "--address", "127.0.0.1:9"], 4, "http://127.0.0.1:9: no Ray job server answers there (connection"),
        (["status", "--address", endpoint], 4, endpoint),
        (["status", "--address", "ray://head:10001"], 2, "http://HEAD:8265"),
        (["cancel", "raysubmit_1", "--address", endpoint], 4, endpoint),
        (["submit", site.config("nowhere", bundle=f"{site.bucket}/nothing")], 4, "no bundle there"),
    ]
    for arguments, code, message in cases:
        found = run([str(argument) for argument in arguments])
        assert_one_line(Ended(found, *capsys.readouterr()), code, message, arguments)


def test_a_job_server_that_answers_by_the_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "REQUEST", 0.3)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n") as port:
        address = f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match=f"^{address}: no Ray job server answers there .TimeoutError.: give"):
            submission.Cluster(address)


def assert_one_line(ended: Ended, code: int, message: str, arguments: list[object]) -> None:
    assert (ended.code, ended.out) == (code, ""), (arguments, ended)
    assert message in ended.err, (arguments, ended)
    assert len(ended.err.splitlines()) == 1, (arguments, ended)


def test_local_uris_and_a_working_dir_are_refused_all_at_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    archive = {"kind": "tar", "uri": "archive/", "label_names": "names.json"}
    local = {"bundle": "bundle/", "input": archive, "output": "file:///results"}
    assert run(["submit", str(site.config("local", **local, runtime_env={"working_dir": "."}))]) == 2
    refused = capsys.readouterr().err
    found = [line.removeprefix("gradosr: ").partition(": ")[0] for line in refused.splitlines()]
    assert found == ["bundle", "input.uri", "output", "input.label_names", "runtime_env.working_dir"]
    assert "py_modules" in refused


def test_a_cluster_that_takes_no_job_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray answers so while its nodes are starting, and on a busy machine."""
    monkeypatch.setattr(submission, "POLL", 0.01)
    asked: list[str] = []

    class Starting:
        def submit_job(self, *, submission_id: str, **_: object) -> None:
            asked.append(submission_id)
            if len(asked) < 3:
                answer = (
                    "Request failed with status code 500: No available agent to submit job, please try again later.."
                )
                raise RuntimeError(answer)

    cluster = object.__new__(submission.Cluster)
    cluster.address, cluster._client = "http://head:8265", Starting()  # type: ignore[assignment]
    cluster._patiently(lambda: cluster._start("gradosr-0-1", {}, {}), submission._NoAgent)
    assert len(asked) == 3
    monkeypatch.setattr(submission, "PATIENCE", 0.0)
    asked.clear()
    with pytest.raises(InputError, match=r"^http://head:8265: no node of the cluster takes jobs yet; submit it again$"):
        cluster._patiently(lambda: cluster._start("gradosr-0-1", {}, {}), submission._NoAgent)
