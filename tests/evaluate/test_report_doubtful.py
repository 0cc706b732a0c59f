"""The part of the report on new items that are held back because of their texts."""

import pyarrow as pa

from crossrec.data.texts import ATTRACTS, EMPTY
from crossrec.evaluate.markup import share
from crossrec.evaluate.report import render_report
from crossrec.score.attraction import EXAMPLE_LENGTH, EXAMPLES, describe
from tests.evaluate.pages import Page


def test_report_counts_and_shows_what_is_held_back() -> None:
    texts = pa.chunked_array([["best <b>cheap</b> " + "x" * EXAMPLE_LENGTH, "", "honest"]])
    rows = [(0, ATTRACTS, 0.75), (1, EMPTY, None), (0, EMPTY, None)]
    found = [
        {"domain": "a<b", "item_id": f"i{row}", "row": row, "reason": reason, "share": part}
        for row, reason, part in rows
    ]
    counts, examples = describe(found, texts)
    assert counts == {"held_back": 2, "reasons": {ATTRACTS: 1, EMPTY: 2}}
    sizes = {"items": 1_003, "new": 40} | counts
    told = {"trial": 50, "domain": {"a<b": sizes}, "examples": examples}
    page = Page(render_report({"k": 10, "texts": told}, []))
    assert "one user in 50" in page.text("p")
    cells = page.text("th", "td")
    assert f"a<b 1,003 40 2 {share(2, 40)} {ATTRACTS} 1, {EMPTY} 2" in cells
    assert f"i0 {texts[0].as_py()[:EXAMPLE_LENGTH]} {ATTRACTS} {share(3, 4)}" in cells
    assert f"i1 – {EMPTY} –" in cells


def test_report_shows_the_most_attractive_of_many() -> None:
    many = 2 * EXAMPLES
    found = [
        {"domain": "d", "item_id": f"i{row}", "row": row, "reason": ATTRACTS, "share": row / 10}
        for row in range(many)
    ]
    shown = describe(found, pa.chunked_array([["text"] * many]))[1]
    assert [row["item_id"] for row in shown] == [f"i{many - 1 - n}" for n in range(EXAMPLES)]


def test_report_without_a_look_at_texts_says_nothing_of_them() -> None:
    assert "Texts held back" not in render_report({"k": 10}, [])
