"""A few users for the report: what they did, were shown, and did next.

sample = sample_users(job, truth, buckets)
"""

import datetime as dt
from typing import Any

import polars as pl
import pyarrow as pa

from crossrec.data.histories import read_catalogue, read_histories
from crossrec.schema import BECAUSE, DOMAIN, ITEM_ID, US_PER_DAY, USER_ID, domain_folder
from crossrec.score.bucket import ScoreJob

USERS = 40
USERS_A_BUCKET = 5
HISTORY_LENGTH = 15
LIST_LENGTH = 10
TITLE_LENGTH = 120


def sample_users(job: ScoreJob, truth: pa.Table, buckets: range) -> list[dict[str, Any]]:
    """Return up to USERS users of the hold-out; only the buckets that hold them are read."""
    items = _titles(job)
    relevant = pl.DataFrame(pl.from_arrow(truth)).join(items, on=[DOMAIN, ITEM_ID])
    found: list[dict[str, Any]] = []
    for bucket in buckets:
        if len(found) >= USERS:
            break
        lists = _lists(job, bucket).filter(pl.col(USER_ID).is_in(relevant[USER_ID].implode()))
        # Users with more domains ahead of them tell more; ties by id keep a rerun the same.
        by_domains = relevant.group_by(USER_ID).agg(pl.col(DOMAIN).n_unique().alias("domains"))
        users = lists.select(USER_ID).unique().join(by_domains, on=USER_ID)
        users = users.sort("domains", USER_ID, descending=[True, False]).head(USERS_A_BUCKET)
        events = _events(job, bucket, users).join(items, on="row", maintain_order="left")
        found += [_describe(user, events, lists, relevant, items) for user in users[USER_ID]]
    return found[:USERS]


def _titles(job: ScoreJob) -> pl.DataFrame:
    """Return row, domain, item_id and title of every item; an item without text goes by its id."""
    parts = []
    for domain in job.prepared.domains:
        items = pl.DataFrame(pl.from_arrow(read_catalogue(job.store, job.prepared, domain.name)))
        title = pl.when(pl.col("text") == "").then(pl.col(ITEM_ID)).otherwise(pl.col("text"))
        rows = pl.int_range(domain.start, domain.stop, dtype=pl.Int32).alias("row")
        parts.append(
            items.select(rows, DOMAIN, ITEM_ID, title.str.slice(0, TITLE_LENGTH).alias("title"))
        )
    return pl.concat(parts)


def _lists(job: ScoreJob, bucket: int) -> pl.DataFrame:
    """Return the model's lists of a bucket: user_id, domain, item_ids, scores."""
    parts = []
    for file in job.store.read_json(job.record_path(bucket))["files"]:
        for domain in job.domains:
            if file["path"].startswith(f"{job.outputs['model']}/{domain_folder(domain)}/"):
                table = pl.DataFrame(pl.from_arrow(job.store.read_parquet(file["path"])))
                parts.append(table.with_columns(pl.lit(domain).alias(DOMAIN)))
    return pl.concat(parts)


def _events(job: ScoreJob, bucket: int, users: pl.DataFrame) -> pl.DataFrame:
    """Return the newest known events of the users, newest first: user_id, row, timestamps."""
    histories = pl.DataFrame(pl.from_arrow(read_histories(job.store, job.prepared, bucket)))
    events = histories.join(users, on=USER_ID).explode("rows", "timestamps").rename({"rows": "row"})
    known = events.filter(pl.col("timestamps") < job.day * US_PER_DAY)
    return (
        known.sort("timestamps", "row", descending=True)
        .group_by(USER_ID, maintain_order=True)
        .head(HISTORY_LENGTH)
    )


def _describe(
    user: str,
    events: pl.DataFrame,
    lists: pl.DataFrame,
    relevant: pl.DataFrame,
    items: pl.DataFrame,
) -> dict[str, Any]:
    """Return a user in the form that `report.render_report` takes."""
    mine = pl.col(USER_ID) == user
    done_next = relevant.filter(mine).select(DOMAIN, ITEM_ID, "title")
    shown = {}
    of_user = lists.filter(mine).sort(DOMAIN)
    because = _because(of_user, items)
    for domain, item_ids, scores in of_user.select(DOMAIN, "item_ids", "scores").iter_rows():
        top = pl.DataFrame(
            {DOMAIN: [domain] * len(item_ids), ITEM_ID: item_ids, "score": scores}
        ).head(LIST_LENGTH)
        named = top.join(items, on=[DOMAIN, ITEM_ID], maintain_order="left")
        marked = named.join(
            done_next.with_columns(is_next=True),
            on=[DOMAIN, ITEM_ID],
            how="left",
            maintain_order="left",
        )
        shown[domain] = marked.select(
            ITEM_ID, "title", "score", pl.col("is_next").fill_null(False)
        ).to_dicts()
        for row, reasons in zip(shown[domain], because.get(domain, ()), strict=False):
            row[BECAUSE] = reasons
    history = [
        {
            "date": _date(row["timestamps"]),
            DOMAIN: row[DOMAIN],
            ITEM_ID: row[ITEM_ID],
            "title": row["title"],
        }
        for row in events.filter(mine).to_dicts()
    ]
    return {USER_ID: user, "history": history, "lists": shown, "next": done_next.to_dicts()}


def _because(lists: pl.DataFrame, items: pl.DataFrame) -> dict[str, list[list[dict[str, str]]]]:
    """Return by domain the reasons of a user's first items: domain, item_id and title of each.

    Nothing where lists are not explained.
    """
    if BECAUSE not in lists.columns:
        return {}
    shown = {
        domain: because[:LIST_LENGTH]
        for domain, because in lists.select(DOMAIN, BECAUSE).iter_rows()
    }
    named = [reason for of_list in shown.values() for of_item in of_list for reason in of_item]
    keys = pl.DataFrame(named, {DOMAIN: pl.String, ITEM_ID: pl.String}).unique()
    titles = {
        (row[DOMAIN], row[ITEM_ID]): row["title"]
        for row in keys.join(items, on=[DOMAIN, ITEM_ID]).to_dicts()
    }
    return {
        domain: [
            [reason | {"title": titles[reason[DOMAIN], reason[ITEM_ID]]} for reason in of_item]
            for of_item in of_list
        ]
        for domain, of_list in shown.items()
    }


def _date(timestamp_us: int) -> str:
    return (dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=timestamp_us)).date().isoformat()
