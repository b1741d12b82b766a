"""Nights on an archive that grows: what is new, what is gone, and who is told of gates that tripped."""

import hashlib
import hmac
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from fault_proxy import FaultProxy
from hostile import tar
from made_runs import calibration, rows, write_run
from PIL import Image
from tiny import ARCH, labelled_tar, local_job, make_bundle, write_archive
from trickle import trickling

from gradosr.audit import screening, webhook
from gradosr.audit.nights import Counts, History, Night, Verdict
from gradosr.audit.rows import id_of
from gradosr.config import S3Settings, ScreenJob, Webhook, load_job
from gradosr.errors import ConfigError, RunFailed, StoreError
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.results.outcome import Outcome
from gradosr.run.plan import Summary, prepare
from gradosr.scoring.worker import ShardWorker
from gradosr.store import Store, StoredObject

# --- The config ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": {}}, "gates: name at least one, or no night can trip: bad_images, new_candidate_class, "),
        ({"timezone": "Mars/Base"}, "timezone: no time zone Mars/Base; expected a name such as Europe/Berlin"),
        ({"timezone": "../etc/passwd"}, "timezone: no time zone ../etc/passwd;"),
        (
            {"features": "none", "gates": {"new_candidate_class": 9}},
            "gates.new_candidate_class needs features: unknown",
        ),
    ],
)
def test_what_no_night_can_do_is_told_when_the_config_is_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    document = {"bundle": "b", "input": {"kind": "tar", "uri": "a"}, "output": "o", "gates": {"bad_images": 0}}
    (tmp_path / "screen.yaml").write_text(yaml.safe_dump({**document, **changes}))
    with pytest.raises(ConfigError, match=re.escape(f"screen.yaml: {message}")) as told:
        load_job(ScreenJob, str(tmp_path / "screen.yaml"))
    assert "\n" not in str(told.value)


# --- Telling ---


def night() -> Night:
    return Night("2026-11-21", "2026-11-21T02:30:00+01:00", Counts(1000, 1000, 50), 10, 1, (), ())


@contextmanager
def listening(
    *answers: int, port: int = 0, refused: str = "-"
) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A real HTTP server that answers with these, and then with 204: its URL, and what it heard.

    It answers 400 to whatever is about the night `refused`.
    """
    heard: list[tuple[dict[str, str], bytes]] = []
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            wrong = json.loads(heard[-1][1])["night"] == refused
            self.send_response(400 if wrong else left.pop(0) if left else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", heard
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def screen_job(folder: Path, **changes: Any) -> ScreenJob:
    document = {**local_job(folder).model_dump(exclude={"features"}), "gates": {"bad_images": 0}}
    return ScreenJob.model_validate({**document, **changes})


def test_a_webhook_is_signed_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_KEY", "a key")
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    with listening(503, 500) as (url, heard):
        webhook.tell(screen_job(tmp_path, webhook=Webhook(url=url, key_env="HOOK_KEY")), night(), "webhook")
    assert len(heard) == 3
    assert len({headers["Idempotency-Key"] for headers, _ in heard}) == 1
    headers, body = heard[-1]
    assert headers["X-Gradosr-Signature"] == "sha256=" + hmac.new(b"a key", body, hashlib.sha256).hexdigest()
    assert json.loads(body)["night"] == "2026-11-21"


def test_a_webhook_that_stays_deaf_is_told_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    with listening(*[500] * 9) as (url, heard):
        job = screen_job(tmp_path, webhook=Webhook(url=url, attempts=2))
        with pytest.raises(RunFailed, match=r"webhook .*/hook: .*500.* \(2 times\)") as told:
            webhook.tell(job, night(), "webhook")
    assert len(heard) == 2
    assert "secret" not in str(told.value)


def test_a_key_that_is_not_there_is_told_before_work_starts(tmp_path: Path) -> None:
    job = screen_job(tmp_path, webhook=Webhook(url="http://127.0.0.1:1/", key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        screening.check(job)


def test_a_command_hears_the_night_on_its_standard_input(tmp_path: Path) -> None:
    webhook.tell(screen_job(tmp_path, command=("tee", f"{tmp_path}/heard.json")), night(), "command")
    assert json.loads((tmp_path / "heard.json").read_text())["counts"]["unknown"] == 50
    with pytest.raises(RunFailed, match=r"command false: .*next screening"):
        webhook.tell(screen_job(tmp_path, command=("false",)), night(), "command")


def test_what_does_not_speak_http_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"220 a mail server\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        job = screen_job(tmp_path, webhook=Webhook(url=f"http://127.0.0.1:{listener.getsockname()[1]}/", attempts=1))
        with pytest.raises(RunFailed, match=r"webhook .*220 a mail server.*next screening"):
            webhook.tell(job, night(), "webhook")
        thread.join(10)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_a_receiver_that_answers_by_the_byte_is_given_up(head: bytes, tmp_path: Path) -> None:
    with trickling(head) as port:
        hook = Webhook(url=f"http://127.0.0.1:{port}/", attempts=1, timeout=0.3)
        with pytest.raises(RunFailed, match=r"webhook .*: no answer within 0.3 s \(1 times\); the next screening"):
            webhook.tell(screen_job(tmp_path, webhook=hook), night(), "webhook")


def test_a_command_that_hangs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "COMMAND_SECONDS", 0.1)
    with pytest.raises(RunFailed, match=r"command sleep: .*timed out"):
        webhook.tell(screen_job(tmp_path, command=("sleep", "3600")), night(), "command")


# --- Weeks ---


def add_night(job: ScreenJob, date: str, *, trips: bool = True) -> None:
    """Store a night as a screening does."""
    verdict = Verdict("bad_images", 0, 3, trips, "3 of 1,000 new images have no score")
    alerted = replace(night(), night=date, verdicts=(verdict,), receivers=tuple(webhook.receivers(job)))
    history(job).commit(alerted, {})


def tell_all(job: ScreenJob) -> str:
    """Tell as a screening does, from the folder alone; what it says where that fails."""
    try:
        screening.tell_all(job, history(job))
    except RunFailed as error:
        return str(error)
    return ""


def told_nights(heard: list[tuple[dict[str, str], bytes]]) -> list[str]:
    return [json.loads(body)["night"] for _, body in heard]


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ScreenJob, int]:
    """A job whose webhook is a port at which nobody listens."""
    monkeypatch.setattr(webhook, "PAUSE", 0.001)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    Store().write(f"{tmp_path}/archive/00000.tar", labelled_tar(0, 1))
    return screen_job(tmp_path, webhook=Webhook(url=f"http://127.0.0.1:{port}/", attempts=2)), port


WEEK = [f"2026-11-{day:02}" for day in range(21, 28)]


def test_a_receiver_that_is_dead_for_a_week_hears_of_each_night_once(deaf: tuple[ScreenJob, int]) -> None:
    job, port = deaf
    add_night(job, "2026-11-20", trips=False)
    for number, date in enumerate(WEEK, 1):
        add_night(job, date)
        assert tell_all(job).endswith(f"nights waiting to be told: {number}")
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
        add_night(job, "2026-11-28")
        for _ in range(3):
            assert tell_all(job) == ""
    assert told_nights(heard) == [*WEEK, "2026-11-28"]
    assert len({headers["Idempotency-Key"] for headers, _ in heard}) == 8


def test_an_alert_that_is_refused_holds_up_no_newer_one(deaf: tuple[ScreenJob, int]) -> None:
    job, port = deaf
    for date in WEEK:
        add_night(job, date)
    with listening(port=port, refused=WEEK[0]) as (_, heard):
        for _ in range(3):
            assert "400" in tell_all(job)
    assert [told_nights(heard).count(date) for date in WEEK[1:]] == [1] * 6
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
    assert told_nights(heard) == WEEK[:1]


def test_a_command_that_fails_does_not_repeat_the_webhook(deaf: tuple[ScreenJob, int]) -> None:
    job, port = deaf
    failing = job.model_copy(update={"command": ("false",)})
    add_night(failing, WEEK[0])
    with listening(port=port) as (_, heard):
        for _ in range(3):
            assert "command false" in tell_all(failing)
        assert tell_all(failing.model_copy(update={"command": ("true",)})) == ""
        assert tell_all(failing) == ""
    assert told_nights(heard) == WEEK[:1]


def test_a_receiver_that_is_added_later_is_not_told_old_news(deaf: tuple[ScreenJob, int]) -> None:
    job, port = deaf
    add_night(job, WEEK[0])
    assert tell_all(job.model_copy(update={"webhook": None})) == ""
    add_night(job, WEEK[1])
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
    assert told_nights(heard) == WEEK[1:2]


def test_a_receiver_hears_only_of_nights_since_it_was_added(deaf: tuple[ScreenJob, int], tmp_path: Path) -> None:
    job, port = deaf
    add_night(job, WEEK[0])
    assert tell_all(job).endswith("nights waiting to be told: 1")
    both = job.model_copy(update={"command": ("tee", "-a", f"{tmp_path}/heard")})
    add_night(both, WEEK[1])
    with listening(port=port) as (_, heard):
        assert tell_all(both) == ""
    assert told_nights(heard) == WEEK[:2]
    assert (tmp_path / "heard").read_text().count('"night": ') == 1
    assert WEEK[1] in (tmp_path / "heard").read_text()


def test_nights_of_a_version_that_did_not_note_receivers_are_old_news(deaf: tuple[ScreenJob, int]) -> None:
    job, port = deaf
    add_night(job, WEEK[0])
    document = Path(history(job).path(WEEK[0], "screening.json"))
    document.write_text(json.dumps({k: v for k, v in json.loads(document.read_text()).items() if k != "receivers"}))
    add_night(job, WEEK[1])
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
    assert told_nights(heard) == WEEK[1:2]


def test_a_night_that_is_never_told_is_given_up_in_one_line(
    deaf: tuple[ScreenJob, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "TOLD_FOR", 3)
    job, port = deaf
    for date in WEEK[:2]:
        add_night(job, date)
        assert "given up" not in tell_all(job)
    add_night(job, WEEK[2])
    told = tell_all(job)
    assert re.search(f"; given up after 3 screenings: [^;]*/{WEEK[0]}/index.html; ", told)
    assert told.endswith("nights waiting to be told: 2")
    assert "\n" not in told
    add_night(job, WEEK[3], trips=False)
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
    assert told_nights(heard) == WEEK[1:3]


def test_nights_that_no_screening_told_of_are_still_told(
    deaf: tuple[ScreenJob, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each screening after the first night was killed before it told anybody."""
    monkeypatch.setattr(screening, "TOLD_FOR", 3)
    job, port = deaf
    for date in WEEK:
        add_night(job, date)
    with listening(port=port) as (_, heard):
        assert tell_all(job) == ""
    assert told_nights(heard) == WEEK


def test_an_alert_repeated_after_a_crash_has_the_same_id(deaf: tuple[ScreenJob, int], tmp_path: Path) -> None:
    job, port = deaf
    job = job.model_copy(update={"command": ("tee", "-a", f"{tmp_path}/heard")})
    for date in WEEK[:2]:
        add_night(job, date)
    mark = Path(history(job).path(WEEK[0], "told-webhook.json"))
    mark.mkdir()  # told, and then not marked
    with listening(port=port) as (_, heard):
        with pytest.raises(StoreError):
            tell_all(job)
        mark.rmdir()
        assert tell_all(job) == ""
    assert told_nights(heard) == [WEEK[0], *WEEK[:2]]
    ids = [json.loads(body)["id"] for _, body in heard]
    assert ids[0] == ids[1] != ids[2]
    assert ids == [headers["Idempotency-Key"] for headers, _ in heard]
    assert [document["id"] for document in documents((tmp_path / "heard").read_text())] == ids[1:]


def documents(text: str) -> list[dict[str, Any]]:
    """JSON documents one after the other."""
    found, decoder = list[dict[str, Any]](), json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


# --- Nights ---


@pytest.fixture
def job(tmp_path: Path) -> ScreenJob:
    """Over an archive of two shards of six images; the network has never seen anything."""
    for shard in range(2):
        add_shard(tmp_path, f"{shard:05}.tar", shard)
    gates = {"shards_missing": 0, "bad_images": 0, "new_candidate_class": 10, "rate_increase": 0.2}
    return screen_job(tmp_path, gates=gates)


def add_shard(folder: Path, name: str, first: int, images: int = 6) -> None:
    Store().write(f"{folder}/archive/{name}", labelled_tar(100 * first, images))


def one_night(job: ScreenJob) -> tuple[Summary, Night | None]:
    """A screening in this process."""
    plan, outcome = prepare(job), Outcome()
    plan.claim()
    if plan.pending:
        worker = ShardWorker(job, plan.fingerprint, threads=1)
        worker.ready()
        outcome.scored = {shard.part: worker.score(shard)() for shard in plan.pending}
    return screening.close(job, plan, outcome, History(Store(), plan.folder))


def history(job: ScreenJob) -> History:
    return History(Store(), prepare(job).folder)


def test_a_night_covers_what_is_new_or_changed(job: ScreenJob, tmp_path: Path) -> None:
    summary, first = one_night(job)
    assert first is not None
    assert (summary.scored, first.counts.rows, first.shards, first.new_shards) == (2, 12, 2, 2)
    add_shard(tmp_path, "00002.tar", 2)
    add_shard(tmp_path, "00001.tar", 3, images=4)  # replaced
    summary, second = one_night(job)
    assert second is not None
    assert (summary.scored, second.counts.rows, second.shards, second.new_shards) == (2, 10, 3, 2)
    assert (second.missing, second.tripped) == ((), [])
    folder = tmp_path / "results" / "screenings"
    assert [night.night for night in history(job).nights(9)] == [first.night, second.night]
    assert second.night.startswith(first.night[:10])
    audited = json.loads((folder / second.night / "audit.json").read_text())
    assert audited["rows"] == 10
    assert (folder / second.night / "index.html").exists()
    page = (folder / "index.html").read_text()
    assert f'href="{second.night}/index.html"' in page
    assert page.index(second.night) < page.index(f'href="{first.night}/index.html"')


def test_a_night_without_news_is_a_night(job: ScreenJob, tmp_path: Path) -> None:
    one_night(job)
    summary, second = one_night(job)
    assert second is not None
    assert (summary.scored, second.counts, second.tripped) == (0, Counts(0, 0, 0), [])


def test_a_shard_that_is_gone_trips_its_gate_once(job: ScreenJob, tmp_path: Path) -> None:
    one_night(job)
    (tmp_path / "archive" / "00001.tar").unlink()
    _, second = one_night(job)
    assert second is not None
    assert (second.missing, [verdict.gate for verdict in second.tripped]) == (("00001.tar",), ["shards_missing"])
    _, third = one_night(job)
    assert third is not None
    assert third.tripped == []


def test_no_picture_of_a_past_night_is_listed(job: ScreenJob, tmp_path: Path) -> None:
    _, first = one_night(job)
    (tmp_path / "archive" / "00001.tar").unlink()
    _, second = one_night(job)
    assert first
    assert second
    folder = tmp_path / "results" / "screenings"
    for name in (first.night, "1999-01-01"):  # the latter was killed before its screening.json was written
        (folder / name / "images").mkdir(parents=True, exist_ok=True)
        (folder / name / "images" / "0.jpg").write_bytes(b"")
    seen = []

    class Watched(Store):
        def list(self, uri: str) -> Iterator[StoredObject]:
            for stored in super().list(uri):
                seen.append(stored.uri.removeprefix(f"{folder}/"))
                yield stored

    nights = History(Watched(), prepare(job).folder)
    assert nights.nights(9) == [first, second]
    assert nights.nights(1) == nights.untold(1) == [second]
    assert nights.archive().keys() == {shard.part for shard in prepare(job).shards}
    nights.mark_heard("webhook", second)
    again = History(Watched(), prepare(job).folder)
    assert again.has_heard("webhook", second)
    assert not again.has_heard("command", second)
    again.mark_told(second)
    assert History(Watched(), prepare(job).folder).untold(9) == [first]
    assert set(seen) == {f"{second.night}/told-webhook.json", f"{second.night}/told.json"}


def test_what_a_killed_night_scored_belongs_to_the_next(job: ScreenJob, tmp_path: Path) -> None:
    one_night(job)
    add_shard(tmp_path, "00002.tar", 2)
    add_shard(tmp_path, "00003.tar", 3)
    plan = prepare(job)
    plan.claim()
    worker = ShardWorker(job, plan.fingerprint, threads=1)
    worker.ready()
    worker.score(plan.pending[0])()  # and no more
    summary, night = one_night(job)
    assert night is not None
    assert (summary.scored, night.new_shards, night.counts.rows) == (1, 2, 12)


def test_failed_shards_make_no_night(job: ScreenJob) -> None:
    plan = prepare(job)
    plan.claim()
    _, night = screening.close(job, plan, Outcome(failed={"00001.tar": "the store was away"}), history(job))
    assert night is None
    assert history(job).nights(9) == []


def test_a_tripped_night_is_told_once(job: ScreenJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    one_night(job)
    (tmp_path / "archive" / "00001.tar").unlink()
    with listening(500) as (url, heard):
        deaf = job.model_copy(update={"webhook": Webhook(url=url, attempts=1)})
        one_night(deaf)
        with pytest.raises(RunFailed):
            screening.tell_all(deaf, history(job))
        for _ in range(2):
            screening.tell_all(deaf, history(job))
    assert len(heard) == 2  # one of them in vain
    assert json.loads(heard[-1][1])["tripped"] == ["shards_missing"]


# --- Nights by the command, on a real store and a real Ray ---


def yellow(number: int) -> bytes:
    """A picture of a class that is in no archive before."""
    pixels = np.array([250, 250, 0]) + np.random.default_rng(number).integers(0, 5, (16, 16, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


LISTED = ("_SUCCESS", "run.json", "parts/", "quarantine/", "groups/")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nights_on_an_archive_that_grows(
    seaweedfs: SeaweedFS, store: Store, bucket: str, s3_settings: S3Settings, tmp_path: Path
) -> None:
    """Night two reads the new and the changed alone; three is killed midway; four catches up, trips and tells."""
    write_archive(store, f"{bucket}/archive", shards=6, images=40)
    make_bundle(store, f"{bucket}/bundle")
    with listening() as (url, heard), FaultProxy(seaweedfs.endpoint_url) as proxy:
        job = {
            "bundle": f"{bucket}/bundle",
            "input": {"kind": "tar", "uri": f"{bucket}/archive/"},
            "output": f"{bucket}/results",
            "trust": [ARCH],
            "workers": 1,
            "gates": {"new_candidate_class": 30, "rate_increase": 0.05},
            "webhook": {"url": url},
            "store": {**s3_settings.model_dump(mode="json", exclude_none=True), "endpoint_url": proxy.endpoint_url},
        }
        config = tmp_path / "screen.yaml"
        config.write_text(yaml.safe_dump(job))
        command = [sys.executable, "-m", "gradosr.jobs.cli", "screen", str(config), "--json"]
        path = f"/{bucket.removeprefix('s3://')}/archive/"

        def screen() -> tuple[int, dict[str, Any]]:
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
            assert done.stdout, done.stderr
            return done.returncode, json.loads(done.stdout)

        def bytes_read() -> dict[str, int]:
            """Count the bodies of the archive's shards read since this was last asked."""
            read = {name.removeprefix(path): size for name, size in proxy.read.items() if name.startswith(path)}
            proxy.read.clear()
            return read

        def listed() -> list[str]:
            """Prefixes below the results since this was last asked, without those that a run itself needs."""
            queries = [parse_qs(seen.partition("?")[2]) for seen in proxy.seen if "list-type" in seen]
            proxy.seen.clear()
            prefixes = [query["prefix"][0].removeprefix("results/") for query in queries]
            return sorted(name for name in prefixes if name not in LISTED and not name.startswith("archive/"))

        def needed() -> list[str]:
            """Prefixes that a screening needs: the names of the nights, and the marks of each night."""
            nights = store.folders(f"{bucket}/results/screenings/")
            return sorted(["screenings/", *(f"screenings/{night}/told" for night in nights)])

        def archive() -> dict[str, StoredObject]:
            return {stored.uri.rpartition("/")[2]: stored for stored in store.list(f"{bucket}/archive/")}

        code, first = screen()
        assert (code, first["new_shards"], first["counts"]["rows"]) == (0, 6, 240)
        assert bytes_read().keys() == archive().keys()
        assert listed() == needed()  # each once

        store.write(f"{bucket}/archive/00006.tar", labelled_tar(6000, 40))
        store.write(f"{bucket}/archive/00005.tar", labelled_tar(99_000, 40))  # replaced
        code, second = screen()
        assert (code, second["new_shards"], second["counts"]["rows"]) == (0, 2, 80)
        read = bytes_read()
        assert read.keys() == {"00005.tar", "00006.tar"}  # of unchanged shards not a byte, pictures included
        for name, size in read.items():  # once to score them, at most once more for pictures
            assert archive()[name].size <= size <= 2 * archive()[name].size
        assert listed() == needed()
        parts = {stored.uri: stored.version for stored in store.list(f"{bucket}/results/parts/")}

        for shard in range(7, 46):
            store.write(f"{bucket}/archive/{shard:05}.tar", labelled_tar(1000 * shard, 6))
        store.write(f"{bucket}/archive/00004.tar", labelled_tar(98_000, 40))  # replaced
        third = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 100
        while len(list(store.list(f"{bucket}/results/parts/"))) < len(parts) + 3:
            assert third.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        third.kill()
        third.wait()

        store.write(f"{bucket}/archive/90000.tar", tar((f"{n:03}.png", yellow(n)) for n in range(60)))
        code, fourth = screen()
        assert (code, fourth["new_shards"], fourth["counts"]["rows"]) == (6, 41, 334), fourth
        assert set(fourth["tripped"]) == {"new_candidate_class", "rate_increase"}
        unchanged = {f"{shard:05}.tar" for shard in (0, 1, 2, 3, 5, 6)}
        assert bytes_read().keys() == archive().keys() - unchanged
        code, fifth = screen()
        assert (code, fifth["counts"]["rows"], fifth["tripped"]) == (0, 0, [])
        assert bytes_read() == {}
    (told,) = heard
    assert json.loads(told[1])["night"] == fourth["night"]
    after = {stored.uri: stored.version for stored in store.list(f"{bucket}/results/parts/")}
    assert len(after) == 47
    assert len(parts.items() & after.items()) == 6  # neither scored again nor touched; the replaced one is superseded
    rows = [
        pq.ParquetFile(io.BytesIO(store.read(uri)), pre_buffer=False).read(use_threads=False)["key"].to_pylist()
        for uri in after
    ]
    keys = [key for part in rows for key in part]
    assert len(keys) == len(set(keys)) == 7 * 40 + 39 * 6 + 60


JUNK = ("old.tar#00000.jpg", "old.tar#00001.jpg", "old.tar#00002.jpg")


@pytest.fixture
def sizes(tmp_path: Path) -> Callable[..., list[int]]:
    """Clusters that are new, for labels by key; the new night has 40 images of what three older ones show, JUNK."""
    draws, known = np.random.default_rng(0), calibration()
    junk, other = np.eye(8)[0], np.eye(8)[1]

    def part(shard: str, *kinds: tuple[np.ndarray, int]) -> list[dict[str, Any]]:
        features = np.concatenate([at + 0.05 * draws.normal(size=(images, 8)) for at, images in kinds])
        return rows(shard, np.full(len(features), 9.0), known, features=features.astype(np.float16))

    parts = {
        "old": part("old.tar", (junk, 3), (other, 5)),
        "window": part("window.tar", (other, 40)),
        "fresh": part("fresh.tar", (junk, 40)),
    }
    uri = write_run(tmp_path / "run", parts, known, width=8)
    job = {
        "bundle": "b",
        "input": {"kind": "tar", "uri": "/archive/"},
        "output": uri,
        "gates": {"new_candidate_class": 10},
        "dismissed": ["junk"],
    }

    def new_classes(labels: dict[str, str], learned: Sequence[str] = ()) -> list[int]:
        about = json.loads((tmp_path / "run/run.json").read_text()) | {"learned": [id_of(key) for key in learned]}
        (tmp_path / "run/run.json").write_text(json.dumps(about))
        return screening._new_classes(ScreenJob.model_validate(job), Store(), uri, ["fresh"], ["window"], labels)

    return new_classes


def test_a_cluster_that_was_dismissed_by_name_is_no_new_class(sizes: Callable[..., list[int]]) -> None:
    assert sizes({}) == [40]
    assert sizes(dict.fromkeys(JUNK, "junk")) == []
    assert sizes({JUNK[0]: "junk"}) == [40]  # it may be a slip
    assert sizes(dict.fromkeys(JUNK[:2], "junk") | {JUNK[2]: "owl"}) == [40]  # people disagree on what it is


def test_images_that_a_bundle_has_learned_from_tell_what_a_cluster_is_and_count_for_nothing_else(
    sizes: Callable[..., list[int]],
) -> None:
    fresh = [f"fresh.tar#{place:05}.jpg" for place in range(5)]
    assert sizes(dict.fromkeys(JUNK, "junk"), learned=JUNK) == []
    assert sizes(dict.fromkeys(fresh, "owl"), learned=fresh) == [35]


def test_labelled_images_are_among_those_that_are_clustered_however_many_there_are(
    sizes: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_hash = sorted([*JUNK, *(f"fresh.tar#{place:05}.jpg" for place in range(40))], key=id_of)
    last = by_hash[-3:]  # the first to be left out
    monkeypatch.setattr(screening, "MOST_GROUPED", 70)  # of 88
    (left,) = sizes({})
    assert left < 40
    assert sizes(dict.fromkeys(last, "junk")) == []
