"""The page of a comparison in Chromium: it asks nobody, runs nothing of the archive, and fits a phone."""

from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, watched
from tiny import local_job, make_bundle, run_here, write_archive

from gradosr.comparison import compare, page, picture_rows
from gradosr.store import Store

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two runs, with pictures; every image that changes sides has a hostile label."""
    root = tmp_path_factory.mktemp("compared")
    store = Store()
    write_archive(store, f"{root}/archive", shards=2, images=30)
    run_here(local_job(root))
    make_bundle(store, f"{root}/other", seed=1)
    run_here(local_job(root, bundle=f"{root}/other", output=f"{root}/after"))
    document = compare(store, f"{root}/results", f"{root}/after")
    for row in (*document["to_unknown"], *document["to_known"]):
        row["label"] = HOSTILE
    out = root / "comparison.html"
    page.write(store, str(out), document, picture_rows(store, document))
    return out


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_its_pictures_asks_nobody_and_runs_nothing(compared: Path, width: int, scheme: str) -> None:
    events: list[str] = []
    with chromium() as browser:
        opened: Any = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        watched(opened, compared.as_uri(), events)
        opened.goto(compared.as_uri())
        assert "change sides" in opened.title()
        decode = "images => Promise.all(images.map(image => { image.loading = 'eager'; return image.decode(); }))"
        opened.locator("img").evaluate_all(decode)  # raises if one of them is broken
        assert opened.locator("img").count() > 0
        assert opened.locator(f"text={HOSTILE}").count() + opened.locator("td.label:has-text('onerror')").count() > 0
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert events == []
