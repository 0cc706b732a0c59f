"""The part of the report in which a person looks at single users.

In: the sample, a list of {"user_id", "history": [{"date", "domain", "item_id", "title"}],
"lists": {domain: [{"item_id", "title", "score", "is_next"}]}, "next": [{"domain", "item_id",
"title"}]}; an item of a list may have reasons, "because": [{"domain", "item_id", "title"}]. Out: a
section with one article a user and the controls that choose among them. The articles are plain
HTML: without JavaScript all of them are shown.

>>> sample = [{"user_id": "anna", "history": [], "lists": {}, "next": []}]
>>> "anna" in browse(sample)
True
"""

from collections.abc import Mapping, Sequence
from typing import Any

from crossrec.evaluate.markup import Markup, Rows, count, table, tag


def browse(sample: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the controls and every user of the sample, in the sample's order."""
    if not sample:
        return tag("p", "No sample of users was written.", class_="none")
    names = [_summary(user) for user in sample]
    options = [tag("option", name, value=f"user-{n}") for n, name in enumerate(names)]
    controls = tag(
        "form",
        tag(
            "label",
            tag("span", "Search ids and titles"),
            tag("input", type="search", id="search", autocomplete="off", spellcheck="false"),
        ),
        tag("label", tag("span", "User"), tag("select", options, id="user")),
        tag(
            "div",
            tag("button", "Previous", type="button", id="previous"),
            tag("button", "Next", type="button", id="next"),
            class_="steps",
        ),
        tag("p", id="matches", role="status"),
        id="controls",
        hidden=True,
        role="search",
        aria_label="Choose a user",
    )
    return Markup(controls + Markup("".join(_article(n, user) for n, user in enumerate(sample))))


def _found(user: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Return the rank of every marked item of a user's lists, by (domain, item_id)."""
    return {
        (domain, row["item_id"]): rank
        for domain, rows in user["lists"].items()
        for rank, row in enumerate(rows, start=1)
        if row["is_next"]
    }


def _summary(user: Mapping[str, Any]) -> str:
    """Return a user's line in the selection."""
    if not user["next"]:
        return str(user["user_id"])
    return f"{user['user_id']} · {len(_found(user))} of {len(user['next'])} found"


def _article(place: int, user: Mapping[str, Any]) -> Markup:
    """Return all that is known of one user."""
    found = _found(user)
    heading = f"user-{place}-name"
    did = tag(
        "section",
        tag("h4", "What they did"),
        _next(user["next"], found),
        _history(user["history"]),
        class_="did",
    )
    lists = [_list(domain, items) for domain, items in user["lists"].items()]
    shown = tag("section", tag("h4", "What crossrec would show"), tag("div", lists, class_="lists"))
    return tag(
        "article",
        tag("h3", tag("span", "User "), tag("code", user["user_id"]), id=heading),
        tag("div", did, shown, class_="user"),
        id=f"user-{place}",
        aria_labelledby=heading,
    )


def _next(items: Sequence[Mapping[str, Any]], found: Mapping[tuple[str, str], int]) -> Markup:
    """Return what a user did after the cut, and where the lists had it."""
    if not items:
        return tag("p", "Nothing new that could be judged.", class_="none")
    rows = []
    for item in items:
        rank = found.get((item["domain"], item["item_id"]))
        where = tag("b", f"✓ rank {rank}", class_="next") if rank else "not shown"
        rows.append([item["domain"], _title(item), where])
    return table("Next, after the cut", ["domain", "title", "in the list"], [Rows(None, rows)])


def _history(events: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a user's events, newest first."""
    if not events:
        return tag("p", "No event before the cut.", class_="none")
    newest = sorted(events, key=lambda event: str(event["date"]), reverse=True)
    rows = [[event["date"], event["domain"], _title(event)] for event in newest]
    caption = f"Before, the last {count(len(rows))}" if len(rows) > 1 else "Before, the last one"
    return table(caption, ["date", "domain", "title"], [Rows(None, rows)])


def _list(domain: str, items: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a user's list in one domain, marking what they did next."""
    if not items:
        return tag("p", tag("b", domain), ": the list is empty.", class_="none")
    mark = tag("b", "✓ chosen next", class_="next")
    rows = [
        [rank, [_title(row), " ", mark if row["is_next"] else None, _because(row)], _score(row)]
        for rank, row in enumerate(items, start=1)
    ]
    return table(domain, [">rank", "title", ">score"], [Rows(None, rows)])


def _score(row: Mapping[str, Any]) -> str:
    """Return a score as it is shown."""
    return f"{row['score']:.3f}"


def _because(row: Mapping[str, Any]) -> Markup | None:
    """Return the reasons of an item, each with its domain; None where it has none."""
    if not row.get("because"):
        return None
    told = [
        [", " if n else "", _title(r), f" ({r['domain']})"] for n, r in enumerate(row["because"])
    ]
    return tag("small", "because of ", told, class_="because")


def _title(item: Mapping[str, Any]) -> object:
    """Return an item's title, or its id where the catalogue has no title."""
    return item["title"] or tag("code", item["item_id"])
