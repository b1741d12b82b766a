"""The page in a real browser: Chromium, headless; what it asks for, runs, shows, and how it is used by keyboard."""

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_document import Archive, drawing
from chromium import chromium, watched

from gradosr.audit import report, text
from gradosr.audit.listing import rows_of as rows_listed
from gradosr.audit.pictures import fetch, rows_of
from gradosr.store import Store

pytestmark = pytest.mark.browser

TABLE = "#flag-table"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("audit"))
    pictures = fetch(Store(), archive.source, rows_of(archive.document))
    pictures.known = dict.fromkeys(archive.document["known_images"], drawing("rings", 7, 64))
    report.write(archive.document, pictures, archive.out)
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


def by_id(archive: Archive) -> dict[str, Any]:
    return {row["id"]: row for row in rows_listed(archive.document)}


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


def unfolded(page: Any) -> Any:
    """Open everything that can be opened, and every long table."""
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    page.locator("button.more", has_text="Show all").evaluate_all("buttons => buttons.forEach(one => one.click())")
    return page


def listed(archive: Archive) -> int:
    """Number of images that the page lists."""
    return len(rows_listed(archive.document))


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_and_asks_nobody(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    page = open_page(width, color_scheme=scheme)
    assert page.title().startswith("Audit: About 4.7")
    decoded = "images => Promise.all(images.map(image => { image.loading = 'eager'; return image.decode(); }))"
    page.locator("img").evaluate_all(decoded)  # raises when one is broken
    assert page.locator("img").count() >= 80
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_short_before_anything_is_opened(open_page: Callable[..., Any], width: int) -> None:
    assert open_page(width).evaluate("document.documentElement.scrollHeight") < 4000


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing(open_page: Callable[..., Any], width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    page = open_page(width, color_scheme=scheme)

    def violations() -> list[str]:
        found = axe.run(page).response["violations"]
        return [f"{one['id']}: {node['html'][:90]}" for one in found for node in one["nodes"]]

    assert violations() == []
    unfolded(page)
    page.locator("#groups .select").first.click()
    assert violations() == []
    page.locator("#groups a.tile").first.click()
    assert page.locator("#detail").is_visible()
    assert violations() == []


def test_nothing_wider_than_a_phone(open_page: Callable[..., Any], archive: Archive) -> None:
    page = unfolded(open_page(360))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll('main *, header *')]
        .filter(one => !one.closest('.scroll, .strip, pre, svg') && one.getBoundingClientRect().right > 361)
        .map(one => one.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    assert page.locator(f"{TABLE} tbody tr:visible").count() == listed(archive)
    table = page.locator(TABLE).evaluate("table => table.parentElement.scrollWidth - table.parentElement.clientWidth")
    assert table <= 0  # the main table needs no scrolling at all
    page.locator("#groups a.tile").first.click()
    dialog = page.locator("#detail").evaluate("dialog => dialog.scrollWidth - dialog.clientWidth")
    assert dialog <= 0


def test_hostile_names_do_not_run(open_page: Callable[..., Any], archive: Archive) -> None:
    page = unfolded(open_page())
    assert page.locator("script").count() == 2
    assert any("<script>alert(1)</script>.jpg" in key for key in shown_keys(page))
    for row in rows_listed(archive.document):
        page.evaluate("id => open(id, [id])", row["id"])
        title, key = page.locator("#detail-title").text_content(), page.locator("#full-key").text_content()
        assert title.startswith("Taken for ")
        assert key == text.neutral(row["key"])
    page.locator("#close").click()
    assert page.locator("script").count() == 2
    assert page.locator("img[src='x'], [onerror], [onload]").count() == 0
    assert page.evaluate("document.body.textContent.includes('alert(4)')") is False  # nothing of EXIF is shown


def test_a_cluster_is_opened_and_an_image_looked_at_by_keyboard(
    open_page: Callable[..., Any], archive: Archive
) -> None:
    page = open_page()
    first, second = (row["id"] for row in archive.document["groups"]["items"][0]["typical"][:2])
    tab_to(page, f"#groups a.tile[data-id='{first}']")
    page.keyboard.press("Enter")
    detail = page.locator("#detail")
    assert detail.is_visible()
    assert "unsure" not in detail.text_content()
    assert "Reason <script>" in page.locator("#why").text_content()
    assert page.locator("#large image").count() == 2
    assert page.locator("#near img").count() == 2
    assert page.locator("#before").is_disabled()
    page.keyboard.press("h")
    assert page.locator("#large .heat").is_hidden()
    page.keyboard.press("ArrowRight")
    assert page.locator("#full-key").text_content() == by_id(archive)[second]["key"]
    page.keyboard.press("s")
    page.keyboard.press("Escape")
    assert detail.is_hidden()
    assert page.evaluate("document.activeElement.dataset.id") == first
    assert "1 image selected" in page.locator("#selected").text_content()
    tab_to(page, "#groups article summary")
    page.keyboard.press("Enter")
    assert page.locator("#groups article details").first.get_attribute("open") is not None
    assert page.locator("#groups article .strip.known img").first.is_visible()


def test_a_key_is_copied_whole(open_page: Callable[..., Any], archive: Archive) -> None:
    page = open_page()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    row = next(row for row in rows_listed(archive.document) if "evil.example" in row["key"])
    page.evaluate("id => open(id, [id])", row["id"])
    page.locator("#copy").click()
    page.wait_for_function("document.getElementById('copied').textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()") == row["key"]


def test_a_frame_on_the_map_selects_and_names_and_downloads(open_page: Callable[..., Any], archive: Archive) -> None:
    page = open_page()
    atlas = page.locator("#map-chart")
    atlas.scroll_into_view_if_needed()
    box = atlas.bounding_box()

    def at(x: float, y: float) -> None:
        page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)

    at(0.01, 0.01)
    page.mouse.down()
    at(0.6, 0.99)
    page.mouse.up()
    chosen = page.locator("#map-chart .chosen").count()
    inside = sum(x <= 0.59 * (max(archive.document["map"]["x"])) for x in archive.document["map"]["x"])
    assert 0 < chosen < len(archive.document["map"]["ids"])
    assert abs(chosen - inside) <= 0.1 * len(archive.document["map"]["ids"])
    assert page.locator("#chosen a.tile").count() == min(24, chosen)
    page.locator("#typed").fill("red panda")
    page.keyboard.press("Enter")
    assert page.locator("#fault").text_content() == "No space and no comma: red_panda"
    page.locator("#typed").fill("red_panda")
    page.keyboard.press("Enter")
    assert f"{chosen} named" in page.locator("#selected").text_content()
    with page.expect_download() as download:
        page.locator("#download").click()
    body = Path(download.value.path()).read_text(encoding="utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(body, newline="")))
    assert {row["label"] for row in rows} == {"red_panda"}
    assert len(rows) == chosen
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row.values())
    page.reload()
    assert f"{chosen} named" in page.locator("#selected").text_content()
    page.evaluate("localStorage.clear()")


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
    page = unfolded(open_page())
    before = scores(page)
    assert before == sorted(before, reverse=True)
    heads = page.locator(f"{TABLE} th")
    page.locator("#flags > details > summary").focus()
    tab_to(page, f"{TABLE} th.number button")
    page.keyboard.press("Enter")
    assert heads.nth(5).get_attribute("aria-sort") == "ascending"
    assert scores(page) == before[::-1]
    page.keyboard.press("Space")
    assert heads.nth(5).get_attribute("aria-sort") == "descending"
    assert scores(page) == before
    for _ in range(4):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert heads.nth(1).get_attribute("aria-sort") == "ascending"
    assert page.locator(f"{TABLE} [aria-sort]").count() == 1
    keys = [key for key in shown_keys(page) if key.isascii() and "rings" in key]
    assert keys == sorted(keys)


def test_filters_by_keyboard(open_page: Callable[..., Any], archive: Archive) -> None:
    page = open_page()
    page.locator("#flags > details > summary").press("Enter")
    tab_to(page, "form[data-for='flag-table'] input")
    page.keyboard.type("RINGS/")
    rings = sum("rings/" in row["key"] for row in rows_listed(archive.document))
    assert len(shown_keys(page)) == rings
    assert all("rings/" in key for key in shown_keys(page))
    said = page.locator("form[data-for='flag-table'] output")
    assert said.text_content() == f"{rings} of {listed(archive)} match"
    page.keyboard.press("Tab")
    page.keyboard.press("f")  # a select goes to the option that begins so
    assert 0 < len(shown_keys(page)) < rings
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("no such thing")
    assert shown_keys(page) == []
    assert said.text_content() == f"0 of {listed(archive)} match"
    page.keyboard.press("Enter")  # sends nothing anywhere


def test_long_tables_show_the_rest_on_demand(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.locator("#where > details > summary").press("Enter")
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
  for (const [name, selector] of [['ink', 'h1'], ['soft', '.eyebrow'], ['link', '.next a'], ['summary', 'summary']])
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


def test_everything_is_there_without_the_script(open_page: Callable[..., Any], archive: Archive) -> None:
    page = open_page(360, java_script_enabled=False)
    for summary in page.locator("main > section > details > summary").all():
        summary.click()
    assert page.locator(f"{TABLE} tbody tr:visible").count() == listed(archive)
    assert page.locator("#rate-table-3 tbody tr:visible").count() == 60
    assert page.locator("form:visible, th button").count() == 0


def test_it_prints(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("form:visible, #detail:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")
