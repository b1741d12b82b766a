"""Names given on the page of an audit come back as labels of the run, whatever the keys are."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, watched
from labelled_run import make_run

from gradosr.audit import audit
from gradosr.config import AuditSettings
from gradosr.labels import read_labels
from gradosr.labels.importing import import_labels
from gradosr.store import Store

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


def test_names_given_on_the_page_are_imported(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = audit(Store(), run.uri, AuditSettings(), out=tmp_path / "audit")
    events: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    url = (tmp_path / "audit" / "index.html").as_uri()
    watched(page, url, events)
    page.goto(url)
    page.locator("#flags > details > summary").press("Enter")
    page.get_by_role("button", name="Show all").click()
    page.locator("#select-shown").click()
    listed = page.locator("#flag-table tbody tr").count()
    assert listed >= len(found["highest"]) > 0
    page.locator("#typed").fill("okapi")
    page.keyboard.press("Enter")
    page.locator("#groups .select").first.click()
    page.locator("#unknown").click()
    with page.expect_download() as download:
        page.locator("#download").click()
    body = Path(download.value.path()).read_bytes()
    page.close()
    assert events == []
    rows = list(csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline="")))
    assert len(rows) == listed
    assert {row["label"] for row in rows} == {"okapi", "unknown"}
    (tmp_path / "labels.csv").write_bytes(body)
    assert import_labels(Store(), run.uri, str(tmp_path / "labels.csv"), "anna")["imported"] == listed
    labels = read_labels(Store(), run.uri)
    assert set(labels["key"].to_pylist()) <= set(run.keys)
    assert set(labels["source"].to_pylist()) == {"page"}
    assert labels["drawn"].null_count == listed  # nobody drew them at random
