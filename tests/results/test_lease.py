"""One driver per run: two contenders, expiry, real deaths, deletion, lost networks, and stores without conditions."""

import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from fault_proxy import FaultProxy
from gradosr.jobs import score as score_job
from tiny import local_job, make_bundle, run_here, write_archive

from gradosr.config import S3Settings
from gradosr.errors import RunActive, StoreError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.results import lease
from gradosr.results.lease import JOB, Lease, LeaseRecord, read_lease
from gradosr.run.console import Notes
from gradosr.run.plan import finish, prepare
from gradosr.store import Store, join, s3

NEVER = 1e6


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> tuple[Store, str]:
    """A store and the URI of a run in it."""
    if request.param == "local":
        return Store(), f"{request.getfixturevalue('tmp_path')}/run"
    return request.getfixturevalue("store"), f"{request.getfixturevalue('bucket')}/run"


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the times of the leases from here on, in seconds; by default all that waits is for ever."""

    def set_times(expires: float = NEVER, renew: float = NEVER, wait: float = NEVER, look: float = 0.05) -> None:
        for name, value in (("EXPIRES", expires), ("RENEW", renew), ("WAIT", wait), ("LOOK", look)):
            monkeypatch.setattr(lease, name, value)

    set_times()
    return set_times


@pytest.fixture
def said() -> list[str]:
    return []


def make(place: tuple[Store, str], said: list[str], **progress: int) -> Lease:
    return Lease(*place, lambda: progress, said.append)


def record(place: tuple[Store, str]) -> LeaseRecord:
    found = read_lease(*place)
    assert found is not None
    return found


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lease_is_renewed_with_the_progress_and_released(
    place: tuple[Store, str], times: Callable[..., None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times(renew=0.05)
    monkeypatch.setenv(JOB, "gradosr-abc-1")
    assert read_lease(*place) is None
    done = count()
    with Lease(*place, lambda: {"done": next(done)}, said.append) as held:
        first = record(place)
        assert (first.pid, first.job, first.released) == (os.getpid(), "gradosr-abc-1", False)
        until(lambda: record(place).progress["done"] >= first.progress["done"] + 3)
        assert record(place).renewed_at > first.renewed_at
        held.check()
    last = record(place)
    assert last.released
    assert (last.token, last.progress["done"]) == (first.token, next(done) - 1)
    assert said == []


def test_a_fault_in_a_renewal_is_told_once_and_does_not_end_the_renewals(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    times(renew=0.02)
    asked = count()

    def facts() -> dict[str, int]:
        if 2 < (number := next(asked)) < 6:
            raise RuntimeError("dictionary changed size during iteration")
        return {"done": number}

    with Lease(*place, facts, said.append):
        until(lambda: record(place).progress["done"] > 6)
    assert record(place).released
    (line,) = said
    assert "not renewed: dictionary changed size" in line


def test_a_lease_that_cannot_be_released_in_time_says_so(
    tmp_path: Path, times: Callable[..., None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RELEASE", 0.05)
    go = threading.Event()

    def facts() -> dict[str, int]:
        if held:
            go.wait(60)
        return {}

    held: list[Lease] = []
    with Lease(Store(), f"{tmp_path}/run", facts, said.append) as one:
        held.append(one)
    go.set()
    (line,) = said
    assert "not released within 0.05 s" in line


def test_of_two_drivers_the_second_is_refused(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    times(renew=0.3)
    with make(place, []) as first:
        token = record(place).token
        with (
            pytest.raises(RunActive, match=rf"/run: .* \(pid {os.getpid()}\) is at work on this run"),
            make(place, said),
        ):
            pass
        assert (record(place).token, record(place).released) == (token, False)
        first.check()
    assert len(said) == 1
    assert "waiting up to" in said[0]


def test_of_many_drivers_at_once_one_works(place: tuple[Store, str], times: Callable[..., None]) -> None:
    times(renew=0.3)
    refused: list[RunActive] = []

    def contend(_: int) -> bool:
        try:
            with make(place, []) as held:
                until(lambda: len(refused) == 5)
                held.check()
        except RunActive as error:
            refused.append(error)
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(contend, range(6))) == 1


def test_what_was_released_is_taken_at_once(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    for number in range(3):
        with make(place, said, number=number):
            assert record(place).progress == {"number": number}
    assert said == []


def test_a_lease_that_is_not_renewed_expires_and_is_never_taken_back(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    with make(place, []) as first:
        times(expires=0.3)
        with make(place, said) as second:
            assert len(said) == 1
            token = record(place).token
            first.__exit__(None, None, None)
            with pytest.raises(RunActive, match="another driver took this run over"):
                first.check()
            assert (record(place).token, record(place).released) == (token, False)
            second.check()
    assert record(place).released


def test_a_waiter_takes_what_is_released_meanwhile(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    first = make(place, []).__enter__()
    second = make(place, said)
    with ThreadPoolExecutor(1) as pool:
        entering = pool.submit(second.__enter__)
        until(lambda: len(said) == 1)
        first.__exit__(None, None, None)
        entering.result()
    second.check()
    second.__exit__(None, None, None)


def test_what_cannot_be_decided_is_refused_in_the_end(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    with make(place, []):
        times(wait=0.2)
        with pytest.raises(RunActive), make(place, said):
            pass


def settle(place: tuple[Store, str]) -> None:
    """Wait until what a driver sent before it stopped is written."""
    before = None
    while before != (before := record(place).renewed_at):
        time.sleep(0.5)


HOLDER = """
import sys, time
from gradosr.results import lease
from gradosr.config import S3Settings
from gradosr.store import Store
lease.RENEW = 0.1
store = Store(S3Settings(endpoint_url=sys.argv[2] or None, addressing_style="path"))
with lease.Lease(store, sys.argv[1], dict, print) as held:
    print("held", flush=True)
    held.lost.wait(120)
    print("lost", flush=True)
"""


@contextmanager
def holder(place: tuple[Store, str], url: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lease and renews it ten times a second, until it loses it."""
    command = [sys.executable, "-c", HOLDER, place[1], url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a dead driver's lease expires")
def test_the_lease_of_a_killed_driver_of_this_machine_is_taken_at_once(
    place: tuple[Store, str], seaweedfs: SeaweedFS, times: Callable[..., None], said: list[str]
) -> None:
    with holder(place, seaweedfs.endpoint_url) as process:
        assert record(place).pid == process.pid
        process.send_signal(signal.SIGKILL)
        until(record(place).is_dead)  # as a zombie too: nobody has waited for it yet
        with make(place, said) as held:
            held.check()
    assert said == []


@pytest.mark.slow
def test_the_lease_of_a_killed_driver_of_another_machine_expires(
    place: tuple[Store, str], seaweedfs: SeaweedFS, times: Callable[..., None], said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    times(expires=0.3)
    with holder(place, seaweedfs.endpoint_url) as process:
        process.kill()
        process.wait()
        settle(place)
        monkeypatch.setattr(lease, "_machine", lambda: None)
        with make(place, said) as held:
            held.check()
    assert len(said) == 1


@pytest.mark.slow
def test_a_driver_that_was_asleep_learns_that_it_lost_the_run(
    place: tuple[Store, str], seaweedfs: SeaweedFS, times: Callable[..., None], said: list[str]
) -> None:
    times(expires=1)
    with holder(place, seaweedfs.endpoint_url) as process:
        process.send_signal(signal.SIGSTOP)
        settle(place)
        with make(place, said) as held:
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert process.stdout.readline() == "lost\n"
            process.wait()
            held.check()
            assert not record(place).released


def test_a_deleted_lease_comes_back(place: tuple[Store, str], times: Callable[..., None], said: list[str]) -> None:
    times(renew=0.1)
    with make(place, said) as held:
        token = record(place).token
        place[0].move(join(place[1], "lease.json"), join(place[1], "elsewhere"))
        until(lambda: read_lease(*place) is not None)
        assert record(place).token == token
        held.check()


def test_a_deleted_lease_that_another_took_is_lost(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    with make(place, []) as first:
        place[0].move(join(place[1], "lease.json"), join(place[1], "elsewhere"))
        with make(place, said) as second:
            first.__exit__(None, None, None)
            assert first.lost.is_set()
            second.check()
    assert said == []


@pytest.mark.slow
@pytest.mark.parametrize("body", [b"", b"{}", b'{"token": 1}', b"\xff", b"[1, 2]"])
def test_what_is_no_lease_expires_as_one(
    place: tuple[Store, str], times: Callable[..., None], said: list[str], body: bytes
) -> None:
    times(expires=0.1)
    place[0].write(join(place[1], "lease.json"), body)
    assert read_lease(*place) is None
    with make(place, said) as held:
        held.check()
    assert "held by an unknown driver" in said[0]


# What the network and the store do


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def faulty(proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, str]:
    """A run behind the proxy, with short pauses."""
    monkeypatch.setattr(s3, "BACKOFF_SECONDS", 0.01)
    settings = S3Settings(endpoint_url=proxy.endpoint_url, addressing_style="path", read_timeout=10)
    return Store(settings), f"{bucket}/run"


@pytest.mark.parametrize("conditions", ["refused", "ignored"])
def test_without_conditional_writes_there_is_a_warning_and_no_lease(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str], conditions: Any
) -> None:
    times(renew=0.1)
    proxy.conditions = conditions
    done = count()
    with Lease(*faulty, lambda: {"done": next(done)}, said.append) as first:
        assert len(said) == 1
        assert "no conditional writes" in said[0]
        until(lambda: record(faulty).progress["done"] >= 4)
        with make(faulty, said) as second:
            first.check()
            second.check()
    assert len(said) == 2
    assert record(faulty).released


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_faulty_network_loses_no_lease(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str], seed: int
) -> None:
    times(renew=0.05)
    proxy.chaos(random.Random(seed), 0.3, ["503", "reset", "lost"])
    asked: list[int] = []

    def facts() -> dict[str, int]:
        asked.append(len(asked))
        return {"done": len(asked)}

    with Lease(*faulty, facts, said.append) as held:
        until(lambda: len(asked) >= 40)
        held.check()
        token = held._token
    assert min(proxy.dealt[fault] for fault in ("503", "reset", "lost")) > 0
    proxy.chaos(random.Random(), 0, ())
    assert record(faulty).token == token
    assert said == []


def test_a_store_that_is_away_for_a_while_loses_no_lease(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str]
) -> None:
    times(renew=0.05)
    with make(faulty, said) as held:
        proxy.method, proxy.always = "PUT", "lost"  # worse than away: what it does is not heard of
        until(lambda: proxy.dealt["lost"] >= 3 * s3.ATTEMPTS)
        held.check()
        proxy.always = None
        before = record(faulty).renewed_at
        until(lambda: record(faulty).renewed_at != before)
        held.check()
    assert record(faulty).released


def test_an_acquisition_whose_answer_is_lost_is_ours(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str]
) -> None:
    for _ in range(2):  # a new lease, then a released one
        proxy.method = "PUT"
        proxy.faults.append("lost")
        with make(faulty, said) as held:
            held.check()
        assert not proxy.faults
    assert said == []


def test_a_store_whose_conditions_never_hold_is_not_asked_for_ever(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str]
) -> None:
    proxy.method, proxy.always = "PUT", "unmet"
    with (
        pytest.raises(StoreError, match=r"run/lease\.json: changed by another process at every attempt"),
        make(faulty, said),
    ):
        pass
    proxy.always = None
    times(renew=0.05)
    with make(faulty, said) as held:
        proxy.dealt.clear()
        proxy.always = "unmet"
        until(lambda: proxy.dealt["unmet"] > 2 * lease.TRIES)
        proxy.always = None
        before = record(faulty).renewed_at
        until(lambda: record(faulty).renewed_at != before)
        held.check()


def test_a_store_that_fails_at_the_start_is_told(
    faulty: tuple[Store, str], proxy: FaultProxy, times: Callable[..., None], said: list[str]
) -> None:
    proxy.method, proxy.always = "PUT", "denied"
    with pytest.raises(StoreError, match=r"run/lease\.json: PutObject is forbidden"), make(faulty, said):
        pass


# Who is dead


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_only_a_process_of_this_machine_that_is_gone_is_dead(
    place: tuple[Store, str], times: Callable[..., None], said: list[str]
) -> None:
    with make(place, said):
        alive = record(place)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    assert not alive.is_dead()
    assert dataclasses.replace(alive, started=0).is_dead()  # its pid was given to another
    gone = dataclasses.replace(alive, pid=process.pid)
    assert gone.is_dead()
    assert not dataclasses.replace(gone, machine="another").is_dead()
    assert not dataclasses.replace(gone, machine=None).is_dead()


def test_lease_json_is_what_others_read(place: tuple[Store, str], times: Callable[..., None], said: list[str]) -> None:
    with make(place, said, done=3):
        document = json.loads(place[0].read(join(place[1], "lease.json")))
    assert set(document) >= {"token", "host", "pid", "job", "renewed_at", "released", "progress"}
    assert document["progress"] == {"done": 3}


def test_a_driver_that_waited_until_the_other_had_finished_has_nothing_left_to_do(
    tmp_path: Path, times: Callable[..., None]
) -> None:
    write_archive(Store(), f"{tmp_path}/archive")
    job = local_job(tmp_path)
    plan = prepare(job)
    run_here(job)
    other = LeaseRecord("token", "elsewhere", 1, None, "2026-01-01T00:00:00+00:00", released=False, progress={})
    Store().write(f"{job.output}/lease.json", json.dumps(dataclasses.asdict(other)).encode())
    times(expires=0.2, wait=5.0)
    summary = score_job.run(plan, Notes(), finish)
    assert (summary.scored, summary.counts["rows"]) == (0, 24)


# --- Two drivers, as users start them ---


@dataclass
class Driver:
    """A `gradosr score` at work, and what it said."""

    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, config: Path) -> "Driver":
        command = [sys.executable, "-m", "gradosr.jobs.cli", "score", str(config), "--json"]
        environment = {**os.environ, "NAP": "0.1"}
        pipe = subprocess.PIPE
        return cls(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=150)
        return self.process.returncode, out, err


@pytest.fixture
def long_job(store: Store, bucket: str, s3_settings: S3Settings, tmp_path: Path) -> Path:
    """24 seconds of work for one worker, as a file."""
    write_archive(store, f"{bucket}/archive", shards=40)
    make_bundle(store, f"{bucket}/bundle", arch="tiny_net:sleepy")
    job = {
        "bundle": f"{bucket}/bundle",
        "input": {"kind": "tar", "uri": f"{bucket}/archive/"},
        "output": f"{bucket}/results",
        "trust": ["tiny_net:sleepy"],
        "workers": 1,
        "store": s3_settings.model_dump(mode="json", exclude_none=True),
    }
    path = tmp_path / "score.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def wait_for_parts(store: Store, bucket: str, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(list(store.list(f"{bucket}/results/parts/"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_for_lease_of(store: Store, bucket: str, pid: int) -> None:
    deadline = time.monotonic() + 300
    while not ((lease := read_lease(store, f"{bucket}/results")) and lease.pid == pid):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_one_table(store: Store, bucket: str) -> None:
    """Every image has one row in the parts that _SUCCESS names, and there are no others."""
    named = json.loads(store.read(f"{bucket}/results/_SUCCESS"))["parts"]
    there = [stored.uri for stored in store.list(f"{bucket}/results/parts/")]
    assert there == [f"{bucket}/results/parts/{part}.parquet" for part in named]
    keys = [
        key
        for uri in there
        for key in pq.ParquetFile(io.BytesIO(store.read(uri)), pre_buffer=False)
        .read(use_threads=False)["key"]
        .to_pylist()
    ]
    assert len(keys) == len(set(keys)) == 240


@pytest.mark.slow
def test_a_second_driver_is_refused_and_the_first_finishes(store: Store, bucket: str, long_job: Path) -> None:
    first = Driver.start(long_job)
    wait_for_parts(store, bucket, 2)
    code, out, err = Driver.start(long_job).end()
    assert (code, out) == (7, ""), err
    assert "waiting up to 40 s" in err.splitlines()[0]
    assert "is at work on this run" in err.splitlines()[-1]
    code, out, err = first.end()
    assert (code, json.loads(out)["scored"]) == (0, 40), err
    assert_one_table(store, bucket)


@pytest.mark.slow
def test_with_the_lease_deleted_midway_the_table_is_right(store: Store, bucket: str, long_job: Path) -> None:
    first = Driver.start(long_job)
    wait_for_parts(store, bucket, 2)
    first.process.send_signal(signal.SIGSTOP)  # its next renewal would write the lease again, before the second looks
    store.move(f"{bucket}/results/lease.json", f"{bucket}/gone.json")
    second = Driver.start(long_job)
    wait_for_lease_of(store, bucket, second.process.pid)
    first.process.send_signal(signal.SIGCONT)
    code, out, err = first.end()
    assert (code, out) == (7, ""), err
    assert "another driver took this run over" in err.splitlines()[-1]
    code, out, err = second.end()
    assert code == 0, err
    assert 0 < json.loads(out)["scored"] < 40
    assert_one_table(store, bucket)
