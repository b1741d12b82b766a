"""The page in a real browser: Chromium, headless; what it asks for, runs, shows, and how it is used by keyboard."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_document import Archive
from chromium import chromium, watched

from gradosr.audit import report
from gradosr.audit.pictures import fetch, rows_of
from gradosr.store import Store

pytestmark = pytest.mark.browser

TABLE = "#flag-table"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("audit"))
    report.write(archive.document, fetch(Store(), archive.source, rows_of(archive.document)), archive.out)
    return archive


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, archive: Archive) -> Iterator[Callable[..., Any]]:
    """Opens the page from disk; in the end nothing was asked of anybody, nothing went wrong and nothing ran."""
    events: list[str] = []
    pages = []
    url = (archive.out / "index.html").as_uri()

    def open_page(width: int = 1280, **settings: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **settings)
        pages.append(page)
        watched(page, url, events)
        page.goto(url)
        page.events = events
        return page

    yield open_page
    for page in pages:
        page.close()
    assert events == []


def shown_keys(page: Any) -> list[str]:
    rows = page.locator(f"{TABLE} tbody tr:visible td.key")
    return [text.strip() for text in rows.all_text_contents()]


def scores(page: Any) -> list[float]:
    cells = page.locator(f"{TABLE} tbody tr:visible td.score")
    return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]


def tab_to(page: Any, selector: str, limit: int = 120) -> None:
    """Use the keyboard alone."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached within {limit} steps")


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_and_asks_nobody(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    assert page.title().startswith("Audit: About 4.7")
    decoded = "images => Promise.all(images.map(image => { image.loading = 'eager'; return image.decode(); }))"
    page.locator("img").evaluate_all(decoded)  # raises when one is broken
    assert page.locator("img").count() >= 80
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_wider_than_a_phone(open_page: Callable[..., Any]) -> None:
    page = open_page(360)
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main *, header *')]
        .filter(one => !one.closest('.scroll, pre, svg') && one.getBoundingClientRect().right > 361)
        .map(one => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    assert page.locator(f"{TABLE} tbody tr:visible").count() == 100
    table = page.locator(TABLE).evaluate("table => table.parentElement.scrollWidth - table.parentElement.clientWidth")
    assert table <= 0  # the main table needs no scrolling at all


def test_hostile_names_do_not_run(open_page: Callable[..., Any]) -> None:
    page = open_page()
    assert page.locator("script").count() == 1
    assert any("<script>alert(1)</script>.jpg" in key for key in shown_keys(page))
    assert page.locator("img[src='x']").count() == 0


def test_the_policy_stops_what_would_be_put_in(open_page: Callable[..., Any]) -> None:
    page = open_page()
    stopped = page.evaluate(
        """async () => {
          const stopped = [];
          addEventListener('securitypolicyviolation', event => stopped.push(event.effectiveDirective));
          const put = markup => document.body.insertAdjacentHTML('beforeend', markup);
          put('<img src="https://example.invalid/x.png">');
          put('<p onclick="window.ran = 1" id="put" style="color: red">x</p>');
          document.getElementById('put').click();
          const script = document.createElement('script');
          script.textContent = 'window.ran = 2';
          document.body.append(script);
          await new Promise(done => setTimeout(done, 200));
          return [stopped.sort(), window.ran ?? null];
        }"""
    )
    assert stopped == [["img-src", "script-src-attr", "script-src-elem", "style-src-attr"], None]
    told = [event for event in page.events if event.startswith("console: ")]
    assert len(told) == 4
    page.events.clear()


def test_sorting_by_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    before = scores(page)
    assert before == sorted(before, reverse=True)
    heads = page.locator(f"{TABLE} th")
    tab_to(page, f"{TABLE} th:nth-last-child(3) button")
    page.keyboard.press("Enter")
    assert heads.nth(4).get_attribute("aria-sort") == "ascending"
    assert scores(page) == before[::-1]
    page.keyboard.press("Space")
    assert heads.nth(4).get_attribute("aria-sort") == "descending"
    assert scores(page) == before
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    assert page.locator(f"{TABLE} [aria-sort]").count() == 1
    keys = [key for key in shown_keys(page) if key.isascii() and "rings" in key]
    assert keys == sorted(keys)


def test_filters_by_keyboard(open_page: Callable[..., Any]) -> None:
    page = open_page()
    tab_to(page, "form[data-for='flag-table'] input")
    page.keyboard.type("RINGS/")
    assert len(shown_keys(page)) == 32
    assert all("rings/" in key for key in shown_keys(page))
    said = page.locator("form[data-for='flag-table'] output")
    assert said.text_content() == "32 of 100 match"
    page.keyboard.press("Tab")
    page.keyboard.press("f")  # a select goes to the option that begins so
    assert 0 < len(shown_keys(page)) < 32
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("no such thing")
    assert shown_keys(page) == []
    assert said.text_content() == "0 of 100 match"
    page.keyboard.press("Enter")  # sends nothing anywhere


def test_long_tables_show_the_rest_on_demand(open_page: Callable[..., Any]) -> None:
    page = open_page()
    table = page.locator("#rate-table-3")
    assert table.locator("tbody tr:visible").count() == 12
    page.locator("form[data-for='rate-table-3'] input").fill("-28.tar")
    assert 0 < table.locator("tbody tr:visible").count() < 12
    page.locator("form[data-for='rate-table-3'] input").fill("")
    page.get_by_role("button", name="Show all 60").press("Enter")
    assert table.locator("tbody tr:visible").count() == 60
    assert page.evaluate("document.activeElement.rowIndex") == 13


def test_the_skip_link_comes_first(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


CONTRAST = """() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const found = {ground};
  for (const [name, selector] of [['ink', 'h1'], ['soft', '.eyebrow'], ['link', 'nav a'], ['summary', 'summary']])
    found[name] = contrast(light(getComputedStyle(document.querySelector(selector)).color), ground);
  const shapes = [['dot', '.dot', 'fill'], ['line', 'path.line', 'stroke'], ['level', '.level', 'stroke']];
  for (const [name, selector, side] of shapes)
    found[name] = contrast(light(getComputedStyle(document.querySelector(selector))[side]), ground);
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_can_be_read(open_page: Callable[..., Any], scheme: str) -> None:
    found = open_page(color_scheme=scheme).evaluate(CONTRAST)
    assert (found.pop("ground") < 0.05) == (scheme == "dark")
    shapes = {name: found.pop(name) for name in ("dot", "line", "level")}
    assert min(found.values()) >= 4.5, found  # WCAG 2.2, 1.4.3
    assert min(shapes.values()) >= 3, shapes  # 1.4.11


def test_everything_is_there_without_the_script(open_page: Callable[..., Any]) -> None:
    page = open_page(360, java_script_enabled=False)
    assert page.locator(f"{TABLE} tbody tr:visible").count() == 100
    assert page.locator("#rate-table-3 tbody tr:visible").count() == 60
    assert page.locator("form:visible, th button").count() == 0


def test_it_prints(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav:visible, form:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
