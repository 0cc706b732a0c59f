import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.texts import (
    ATTRACTIVE_TIMES,
    COPIED,
    EMPTY,
    LONG,
    MOST_COPIES,
    REPEATED,
    TRIAL,
    faults_of,
    is_on_trial,
    too_attractive,
)

HONEST = [f"a plain description of thing number {number} in some words" for number in range(60)]


def found(new: list[str], old: list[str] = HONEST) -> dict[str, list[str]]:
    """Return what is wrong with new items' texts, beside those of items with events."""
    texts = [*old, *new]
    faults = faults_of(pa.array(texts, pa.string()), np.arange(len(texts)) >= len(old))
    return {name: [texts[row] for row in rows] for name, rows in faults.items() if len(rows)}


STUFFED = "cheap best sale " * 10
LONG_TEXT = " ".join(f"word{number}" for number in range(200))
NEW = [text.replace("plain", "fine") for text in HONEST]


def test_honest_new_items_are_left_alone() -> None:
    variants = ["shirt, blue"] * MOST_COPIES
    assert found([*NEW, *variants, "one word", "24"]) == {}


def test_each_fault_is_found_in_new_items() -> None:
    many = ["all the same"] * (MOST_COPIES + 1)
    copy, shouted = HONEST[7], HONEST[8].upper()
    repeated = "bread bread best bread bread fresh bread bread loaf bread bread"
    new = [*NEW, copy, shouted, *many, "", "?! ...", repeated, STUFFED.strip()[:44], LONG_TEXT]
    assert found(new) == {
        COPIED: [copy, shouted, *many],
        EMPTY: ["", "?! ..."],
        REPEATED: [repeated],
        LONG: [LONG_TEXT],
    }


def test_an_item_with_events_may_say_what_it_likes() -> None:
    assert found(NEW, [*HONEST, "", LONG_TEXT]) == {}


@pytest.mark.parametrize(
    ("usual", "new"),
    [([""] * 10, ""), (["one shirt"] * 10, "one shirt"), ([LONG_TEXT] * 40, LONG_TEXT)],
    ids=["no texts", "variants", "long texts"],
)
def test_what_is_usual_in_the_domain_is_no_fault(usual: list[str], new: str) -> None:
    old = [f"{text} {n}".strip() if text == LONG_TEXT else text for n, text in enumerate(usual)]
    last = f"{new} more" if new == LONG_TEXT else new
    assert found([*NEW, last], [*HONEST, *old]) == {}


def test_texts_that_a_few_in_a_hundred_lack_are_missing_on_purpose() -> None:
    hundred = [text + end for text in HONEST for end in (", blue", ", red")][:100]
    assert found([*NEW, ""], [*hundred, ""]) == {EMPTY: [""]}
    assert found([*NEW, ""], [*hundred, "", "", ""]) == {}


def test_a_text_is_too_attractive_beside_those_of_items_with_events() -> None:
    shares, is_new = np.full(300, 0.05), np.arange(300) >= 250
    shares[3], shares[260], shares[270] = 0.2, ATTRACTIVE_TIMES * 0.2, 0.6
    assert too_attractive(shares, is_new).tolist() == [270]
    shares[3] = 0.05
    assert too_attractive(shares, is_new).tolist() == [260, 270]
    # Nothing to hold them against, and a domain in which ten items are many.
    assert not len(too_attractive(shares, np.ones(300, bool)))
    assert not len(too_attractive(shares[200:], is_new[200:]))


def test_one_user_in_fifty_is_on_trial_in_every_bucket() -> None:
    users = pa.array([f"user {number}" for number in range(100_000)])
    chosen = is_on_trial(users)
    assert abs(chosen.mean() - 1 / TRIAL) < 0.002
    assert np.array_equal(is_on_trial(users.slice(500, 900)), chosen[500:1400])
    assert not is_on_trial(pa.array([""])).any()
