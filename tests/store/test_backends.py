"""The table of backends: each scheme of it, a new one, and what the rest of the program asks it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fault_proxy import FaultProxy
from tiny import ARCH, make_bundle, run_here, write_archive

from gradosr.config import S3Settings, ScoreJob
from gradosr.config.store import PREFIXES, StoreFields
from gradosr.errors import ConfigError, InputError, NoConditionalWrites, NotFound
from gradosr.lab.seaweedfs import SeaweedFS
from gradosr.results.folder import RunFolder
from gradosr.run.driver.cluster import check_local_uris
from gradosr.run.plan import prepare
from gradosr.run.travel import check_travel
from gradosr.store import BACKENDS, Store, is_shared, join, s3, scheme_of


def job_in(folder: str, **changes: object) -> ScoreJob:
    """A job whose bundle, archive and results lie in `folder`."""
    document = {
        "bundle": join(folder, "bundle"),
        "input": {"kind": "tar", "uri": join(folder, "archive/")},
        "output": join(folder, "results"),
        "trust": [ARCH],
        "batch_size": 4,
        "device": "cpu",
    }
    return ScoreJob.model_validate({**document, **changes})


def score_in(folder: str, settings: S3Settings) -> list[str]:
    """Return the keys of a whole run, with everything it reads and writes in `folder`."""
    store, job = Store(settings), job_in(folder, store=settings)
    write_archive(store, join(folder, "archive"), shards=2)
    make_bundle(store, job.bundle)
    _, summary = run_here(job)
    assert (summary.scored, summary.failed) == (2, {})
    assert prepare(job).pending == []
    table, finished = RunFolder(store, job.output).table(("key", "status"))
    assert finished
    assert set(table.column("status").to_pylist()) == {"ok"}
    return sorted(table.column("key").to_pylist())


KEYS = [f"{shard:05}.tar#{shard * 6 + image:05}.png" for shard in range(2) for image in range(6)]


def test_a_run_in_a_store_of_one_file_and_one_line(toy: str) -> None:
    assert score_in(toy, S3Settings()) == KEYS
    with Store().open(Store().stat(next(stored.uri for stored in Store().list(f"{toy}/results/parts/")))) as part:
        assert pq.read_table(part).num_rows == 6


def test_a_run_in_memory() -> None:
    assert score_in("memory://test-a-run", S3Settings()) == KEYS


def test_a_run_in_a_bucket_of_google(s3_settings: S3Settings, bucket: str) -> None:
    assert score_in(bucket.replace("s3", "gs", 1), s3_settings) == KEYS


def test_a_new_scheme_is_named_among_the_valid_ones(toy: str) -> None:
    with pytest.raises(ConfigError, match=r"memory://NAME/KEY or toy://NAME/KEY$"):
        Store().read("hf://x")
    with pytest.raises(ConfigError, match=r"the nodes of a cluster see s3://, gs:// and toy:// only"):
        check_travel(job_in("/here"))
    check_travel(job_in(toy))


def test_which_machines_reach_a_uri() -> None:
    shared = {uri: is_shared(uri) for uri in ("x", "/x", "file:///x", "memory://a/x", "s3://a/x", "gs://a/x")}
    assert shared == {
        **dict.fromkeys(("x", "/x", "file:///x", "memory://a/x"), False),
        **dict.fromkeys(("s3://a/x", "gs://a/x"), True),
    }


def test_memory_does_not_travel() -> None:
    with pytest.raises(ConfigError, match=r"^bundle: memory://a/bundle is in the memory of this process; the nodes"):
        check_travel(job_in("memory://a"))
    job = job_in("memory://test-no-travel")
    write_archive(Store(), "memory://test-no-travel/archive", shards=1)
    make_bundle(Store(), job.bundle)
    with pytest.raises(ConfigError, match=r"^memory://test-no-travel/bundle: in the memory of this process"):
        check_local_uris(job, prepare(job).pending[0])  # no cluster is asked


def test_memory_is_one_for_all_stores_of_the_process() -> None:
    Store().write("memory://test-shared/x", b"1")
    assert Store().read("memory://test-shared/x") == b"1"
    assert list(Store().list("memory://test-shared-not/")) == []
    with pytest.raises(NotFound, match=r"names no object: memory://NAME/KEY$"):
        Store().write("memory://test-shared", b"1")


def test_results_that_are_not_there() -> None:
    assert not RunFolder(Store(), "memory://nothing/here").look().parts
    with pytest.raises(InputError, match=r"no results there"):
        RunFolder(Store(), "memory://nothing/here").about()


# Google


def client_of(store: Store, uri: str) -> Any:
    backend = store._backend(uri)
    assert isinstance(backend, s3.S3Backend)
    return backend._client.meta


def test_google_has_a_server_of_its_own(bucket: str) -> None:
    meta = client_of(Store(), "gs://bucket/x")
    assert (meta.endpoint_url, meta.region_name) == ("https://storage.googleapis.com", "auto")
    assert meta.config.request_checksum_calculation == "when_required"
    assert meta.config.response_checksum_validation == "when_required"


def test_settings_by_prefix_serve_google_too(bucket: str) -> None:
    settings = StoreFields.model_validate(
        {"store": {"endpoint_url": "http://a"}, "stores": {"gs://": {}, "gs://b": {"endpoint_url": "http://b"}}}
    )
    store = Store(settings.store, settings.stores)
    servers = [client_of(store, uri).endpoint_url for uri in ("s3://b/x", "gs://a/x", "gs://b/x")]
    assert servers == ["http://a", "https://storage.googleapis.com", "http://b"]


def test_settings_by_prefix_are_for_every_scheme_with_buckets() -> None:
    assert set(PREFIXES) == {f"{name}://" for name, scheme in BACKENDS.items() if scheme.buckets}
    with pytest.raises(ValueError, match=r"a store's prefix begins with s3:// or gs://: memory://a"):
        StoreFields.model_validate({"stores": {"memory://a": {}}})


def test_google_may_refuse_conditions(seaweedfs: SeaweedFS, bucket: str) -> None:
    folder = bucket.replace("s3", "gs", 1)
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        proxy.conditions = "refused"
        store = Store(S3Settings(endpoint_url=proxy.endpoint_url, addressing_style="path"))
        with pytest.raises(NoConditionalWrites, match=f"^{folder}/x: "):
            store.exchange(f"{folder}/x", b"body", None)
        assert store.write(f"{folder}/x", b"first", if_absent=True)
        assert store.write(f"{folder}/x", b"second", if_absent=True)
        assert store.read(f"{folder}/x") == b"second"


def test_google_without_keys_is_told_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match=r"^gs://bucket/x: no AWS credentials"):
        Store().read("gs://bucket/x")


# Imports


@pytest.mark.parametrize("uri", ["/tmp/none", "memory://a/x"])
def test_boto3_waits_until_a_bucket_is_used(uri: str) -> None:
    program = (
        "import sys; from gradosr.store import Store; from gradosr.errors import NotFound\n"
        "try: Store().read(sys.argv[1])\n"
        "except NotFound: sys.exit('boto3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, uri], check=False).returncode == 0


def test_every_scheme_connects() -> None:
    for name in BACKENDS:
        example = f"{name}://a/x" if name not in ("", "file") else f"{name}:///x".removeprefix(":")
        assert scheme_of(example).connect(S3Settings(region="us-east-1"))
