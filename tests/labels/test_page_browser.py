"""The page for labelling in Chromium: by keyboard alone, by touch, across reloads, with hostile names."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium, watched
from labelled_run import Scored, make_run

from gradosr.labels import read_labels
from gradosr.labels.handing import hand_out
from gradosr.labels.importing import import_labels
from gradosr.store import Store

pytestmark = pytest.mark.browser
NUMBER = 50


@pytest.fixture(scope="module")
def round_of_50(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scored, Path]:
    root = tmp_path_factory.mktemp("page")
    run = make_run(root)
    hand_out(Store(), run.uri, NUMBER, 0, root / "out")
    return run, root / "out" / "label.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, round_of_50: tuple[Scored, Path]) -> Iterator[Callable[..., Any]]:
    """Opens the page from disk in a browser without memories; nothing is asked of anybody, and nothing goes wrong."""
    events: list[str] = []
    contexts = []
    url = round_of_50[1].as_uri()

    def open_page(width: int = 1280, **settings: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **settings)
        contexts.append(context)
        page = context.new_page()
        watched(page, url, events)
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert events == []


def progress(page: Any) -> str:
    return page.locator("#progress").text_content()


def labels(page: Any) -> list[str]:
    return page.locator("#overview .label").all_text_contents()


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def downloaded(page: Any) -> bytes:
    with page.expect_download() as download:
        page.keyboard.press("d")
    assert download.value.suggested_filename == "labels.csv"
    return Path(download.value.path()).read_bytes()


def test_fifty_images_by_keyboard_alone_come_back(open_page, round_of_50, tmp_path) -> None:
    run, _ = round_of_50
    page = open_page()
    assert progress(page) == f"0 of {NUMBER}"
    press(page, "k", "u", "n")
    page.keyboard.type("okapi")
    press(page, "Enter")
    assert labels(page)[:4] == ["known", "unknown", "okapi", ""]
    assert page.evaluate("document.activeElement.id") == "name"
    press(page, "1", "s", "n")
    page.keyboard.type("CAT")
    press(page, "Enter")
    assert labels(page)[:7] == ["known", "unknown", "okapi", "okapi", "skipped", "cat", ""]
    for _ in range(NUMBER - 6):
        press(page, "u")
    assert progress(page) == f"{NUMBER} of {NUMBER}"
    assert "All are done" in page.locator("#status").text_content()
    body = downloaded(page)
    rows = list(csv.DictReader(io.StringIO(body.decode("utf-8-sig"), newline="")))
    assert [row["label"] for row in rows[:5]] == ["known", "unknown", "okapi", "okapi", "cat"]
    assert len(rows) == NUMBER - 1
    (tmp_path / "labels.csv").write_bytes(body)
    assert import_labels(Store(), run.uri, str(tmp_path / "labels.csv"), "anna")["imported"] == NUMBER - 1
    found = read_labels(Store(), run.uri)
    assert set(found["source"].to_pylist()) == {"page"}
    assert set(found["key"].to_pylist()) <= set(run.keys)
    assert all(value is not None for value in found["drawn"].to_pylist())


def test_nothing_is_lost_on_reload(open_page) -> None:
    page = open_page()
    press(page, "k", "n")
    page.keyboard.type("okapi")
    press(page, "Enter", "u")
    page.reload()
    assert progress(page) == f"3 of {NUMBER}"
    assert labels(page)[:4] == ["known", "okapi", "unknown", ""]
    press(page, "1", "z", "z")
    assert labels(page)[:4] == ["known", "okapi", "", ""]
    page.reload()
    press(page, "z")
    assert labels(page)[:3] == ["known", "", ""]
    press(page, "z", "z", "z")
    assert progress(page) == f"0 of {NUMBER}"


def test_a_cluster_is_named_at_once_and_that_is_undone_at_once(open_page) -> None:
    page = open_page()
    while page.locator("#together").is_hidden():
        press(page, "ArrowRight")
    alike = int(page.locator("#alike").text_content())
    assert alike >= 5
    press(page, "ArrowRight", "k", "ArrowLeft", "ArrowLeft", "c")  # one of them already has a label
    assert page.locator("#mates img").count() == alike
    press(page, "n")
    page.keyboard.type("okapi")
    press(page, "Enter")
    assert labels(page).count("okapi") == alike - 1
    assert f"okapi, {alike - 1} images" in page.locator("#status").text_content()
    press(page, "z")
    assert (labels(page).count("okapi"), labels(page).count("known")) == (0, 1)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("red panda", "No space and no comma: red_panda"),
        ("a,b", "No space and no comma: a_b"),
        ("", "Type a name."),
        ("x\u200b", "No control characters."),
    ],
)
def test_a_name_that_no_class_can_have_is_refused_at_once(open_page, typed: str, told: str) -> None:
    page = open_page()
    press(page, "n")
    page.locator("#typed").fill(typed)
    press(page, "Enter")
    assert page.locator("#fault").text_content() == told
    assert labels(page)[0] == ""
    press(page, "Escape")
    assert page.locator("#naming").is_hidden()
    press(page, "k")
    assert labels(page)[0] == "known"


def test_letters_typed_into_the_name_are_no_commands(open_page) -> None:
    page = open_page()
    press(page, "n")
    page.keyboard.type("kusz1")
    assert progress(page) == f"0 of {NUMBER}"
    assert page.locator("#typed").input_value() == "kusz1"
    page.keyboard.press("Control+k")  # the browser's own
    assert progress(page) == f"0 of {NUMBER}"


def test_hostile_names_run_nothing_and_are_no_formulas(open_page, round_of_50) -> None:
    page = open_page()
    shown = []
    for _ in range(NUMBER):
        shown.append(page.locator("#key").text_content())
        assert page.locator("#picture").get_attribute("alt").endswith(shown[-1])
        press(page, "u")
    assert any("<script>alert(1)</script>.jpg" in key for key in shown) or any("=HYPERLINK" in key for key in shown)
    assert page.locator("script").count() == 2
    assert page.locator("img[src='x']").count() == 0
    rows = list(csv.reader(io.StringIO(downloaded(page).decode("utf-8-sig"), newline="")))
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_picture_is_there_and_nothing_is_wider_than_the_screen(open_page, width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    decoded = "images => Promise.all(images.map(image => { image.loading = 'eager'; return image.decode(); }))"
    page.locator("#overview img, #picture").evaluate_all(decoded)
    assert page.locator("#overview img").count() == NUMBER
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(21, 24, 26)" if scheme == "dark" else "rgb(252, 252, 250)"
    )


def test_by_touch_on_a_phone(open_page) -> None:
    page = open_page(360, has_touch=True, is_mobile=True)
    page.locator("#known").tap()
    page.locator("#name").tap()
    page.locator("#typed").fill("okapi")
    page.locator("#naming button[type=submit]").tap()
    page.locator("#names button").tap()
    page.locator("#skip").tap()
    page.locator("#undo").tap()
    assert labels(page)[:4] == ["known", "okapi", "okapi", ""]
    for button in page.locator(".choices button").all():
        box = button.bounding_box()
        assert box["height"] >= 44
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    page.locator("#overview button").nth(9).tap()
    assert page.locator("#place").text_content() == "Image 10:"


def test_focus_is_seen_and_tab_reaches_every_choice(open_page) -> None:
    page = open_page()
    reached = set()
    for _ in range(12):
        press(page, "Tab")
        focus = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle !== 'none']"
        )
        assert focus[1], focus[0]
        reached.add(focus[0])
    assert {"known", "unknown", "name", "skip", "download"} <= reached


def test_a_browser_that_remembers_nothing_says_so(open_page, browser, round_of_50) -> None:
    page = open_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})")
    page.reload()
    assert page.locator("#memory").is_visible()
    press(page, "k")
    assert labels(page)[0] == "known"


def test_an_image_without_a_picture_can_be_skipped(browser, tmp_path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "archive" / "a.tar").unlink()
    hand_out(Store(), run.uri, 10, 0, tmp_path / "out")
    page = browser.new_page()
    page.goto((tmp_path / "out" / "label.html").as_uri())
    assert page.locator("#missing").text_content() == "no picture: no longer in the archive"
    assert page.locator("#picture").is_hidden()
    press(page, "s")
    assert labels(page)[0] == "skipped"
    page.close()
