"""The report in a real browser: silent, alone, readable at any width, and run by the keyboard.

A headless Chromium opens pages of made-up figures. The tests skip only where there is none; the
environment's CROSSREC_TEST_CHROMIUM may name one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossrec.evaluate.report import render_report
from tests.evaluate.chromium import Chromium, Tab, find_chromium
from tests.evaluate.pages import small_metrics, small_sample, whole_metrics, whole_sample

WIDTHS = (360, 1280)

CONTRAST = """
(() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    throw Error("the page has no ground");
  };
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const isRead = !["SCRIPT", "title"].includes(element.tagName) && element.checkVisibility();
    if (!own || !isRead) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [light(ink), light(ground(element))].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), element.textContent.slice(0, 40), ink]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""
"""Contrast of every visible text, lowest first. Source: WCAG 2.2, relative luminance."""

SPILLED = """
[...document.querySelectorAll("body *:not(.scroll *):not(nav *):not(.skip)")]
  .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 0.5)
  .map((e) => e.tagName + " " + e.textContent.slice(0, 40))
"""

DRAWN_OUTSIDE = """
[...document.querySelectorAll("svg")].flatMap((svg) => [...svg.querySelectorAll("text")]
  .filter((text) => {
    const [inner, outer] = [text, svg.closest("figure")].map((e) => e.getBoundingClientRect());
    return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
  })
  .map((text) => text.textContent))
"""

SHOWN = "[...document.querySelectorAll('article')].filter(a => !a.hidden).map(a => a.id)"

FOCUS = "document.activeElement.id"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    binary = find_chromium()
    if binary is None:
        pytest.skip("no chromium or google-chrome on PATH; CROSSREC_TEST_CHROMIUM may name one")
    with Chromium(binary) as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with everything that a report can hold."""
    path = tmp_path_factory.mktemp("whole") / "report.html"
    path.write_text(render_report(whole_metrics(), whole_sample()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of a run without a study, as older versions wrote its figures."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    path.write_text(render_report(small_metrics(), small_sample()), encoding="utf-8")
    return path


def tab_to(tab: Tab, wanted: str) -> None:
    """Press Tab until the focus is on an element."""
    for _ in range(200):
        if tab.run(FOCUS) == wanted:
            return
        tab.press("Tab")
    raise AssertionError(f"Tab does not lead to {wanted}")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", ["whole", "small"])
def test_page_loads_alone_without_a_complaint(
    browser: Chromium, request: pytest.FixtureRequest, page: str, width: int
) -> None:
    path: Path = request.getfixturevalue(page)
    tab = browser.open(path, width)
    tab.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert tab.complaints == []
    assert [url for url in tab.requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_no_wider_than_the_screen(browser: Chromium, whole: Path, width: int) -> None:
    tab = browser.open(whole, width)
    tab.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert tab.run("document.documentElement.scrollWidth") == width
    assert tab.run(SPILLED) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_charts_keep_their_text_inside(browser: Chromium, whole: Path, width: int) -> None:
    assert browser.open(whole, width).run(DRAWN_OUTSIDE) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_not_blank(browser: Chromium, whole: Path, width: int) -> None:
    tab = browser.open(whole, width)
    shown = len(tab.screenshot())
    tab.run("document.body.style.visibility = 'hidden'")
    blank = len(tab.screenshot())
    # A PNG of one colour has next to no bytes: with the page it has some 30 times as many.
    assert shown > 5 * blank


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_has_contrast(browser: Chromium, whole: Path, is_dark: bool) -> None:
    tab = browser.open(whole, is_dark=is_dark)
    ground = tab.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(15, 20, 22)") == is_dark
    measured: list[list[Any]] = tab.run(CONTRAST)
    assert len(measured) > 300
    assert [text for text in measured if text[0] < 4.5] == []


def test_keyboard_chooses_the_next_user(browser: Chromium, whole: Path) -> None:
    tab = browser.open(whole)
    assert tab.run(SHOWN) == ["user-0"]
    tab_to(tab, "next")
    tab.press("Enter")
    tab.press("Space")
    assert tab.run(SHOWN) == ["user-2"]
    assert tab.run("document.getElementById('matches').textContent") == (
        "12 users; this is number 3."
    )
    tab_to(tab, "next")
    for _ in range(20):  # beyond the last of them
        tab.press("Enter")
    assert tab.run(SHOWN) == ["user-11"]
    assert tab.run(FOCUS) == "next"
    assert tab.run("document.getElementById('next').ariaDisabled") == "true"
    assert tab.complaints == []


def test_keyboard_filters_users_and_chooses_among_them(browser: Chromium, whole: Path) -> None:
    tab = browser.open(whole)
    tab_to(tab, "search")
    tab.write("qx7wz4r1")  # users 1, 10 and 11
    assert tab.run("[...document.getElementById('user').options].map(o => o.value)") == [
        "user-1",
        "user-10",
        "user-11",
    ]
    assert tab.run(SHOWN) == ["user-1"]
    tab.press("Tab")
    assert tab.run(FOCUS) == "user"
    tab.press("ArrowDown")
    assert tab.run(SHOWN) == ["user-10"]
    assert tab.run("document.getElementById('matches').textContent") == (
        "3 of 12 users match; this is number 2."
    )


def test_filter_that_nobody_matches_shows_nobody(browser: Chromium, whole: Path) -> None:
    tab = browser.open(whole)
    tab_to(tab, "search")
    tab.write("zzz")
    assert tab.run(SHOWN) == []
    assert "0 of 12 users match" in tab.run("document.getElementById('matches').textContent")
    tab.run("document.getElementById('search').value = ''")
    tab.run("document.getElementById('search').dispatchEvent(new Event('input'))")
    assert tab.run(SHOWN) == ["user-0"]


def test_what_users_did_next_is_marked_in_words(browser: Chromium, whole: Path) -> None:
    tab = browser.open(whole)
    tab_to(tab, "next")
    tab.press("Enter")
    marked = tab.run(
        "[...document.querySelectorAll('#user-1 tr:has(.next)')].map(r => r.innerText)"
    )
    assert ["✓ rank 4" in row or "✓ chosen next" in row for row in marked] == [True, True]


def test_focus_is_visible(browser: Chromium, whole: Path) -> None:
    tab = browser.open(whole)
    tab.press("Tab")
    assert tab.run("document.activeElement.className") == "skip"
    assert tab.run("document.activeElement.getBoundingClientRect().left") >= 0
    for _ in range(12):
        style, width = tab.run(
            "(style => [style.outlineStyle, parseFloat(style.outlineWidth)])"
            "(getComputedStyle(document.activeElement))"
        )
        assert style == "solid"
        assert width >= 2
        tab.press("Tab")


def test_table_takes_the_focus_only_where_it_scrolls(browser: Chromium, whole: Path) -> None:
    script = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
        ".map(e => [e.tabIndex, e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight])"
    )
    for width in WIDTHS:
        places = browser.open(whole, width).run(script)
        assert {is_wide for _, is_wide in places} == {True, False}
        assert all((index == 0) == is_wide for index, is_wide in places)


def test_complaints_and_requests_would_be_noticed(browser: Chromium, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="missing.png"><script>console.error("no"); throw 1</script>')
    tab = browser.open(page)
    assert len(tab.complaints) >= 2
    assert [url.rsplit("/", 1)[1] for url in tab.requests] == ["bad.html", "missing.png"]
