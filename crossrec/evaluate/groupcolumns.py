"""Which columns `evaluate.groups` asks for, read for those who are judged.

metrics["groups"] = judge_asked_groups(config, store, ranked, lists, items, k=10)
check_groups(config, list_inputs(config))      # before a night: are the columns there?
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from crossrec.config import Config
from crossrec.data.attributes import Values, check_names, item_values, user_values
from crossrec.data.events import index_items
from crossrec.data.inputs import Input
from crossrec.data.pins import pin_inputs
from crossrec.evaluate.groups import Judged, Shown, judge_groups
from crossrec.evaluate.truth import KnownItems
from crossrec.schema import DOMAIN, ITEM_ID, USER_ID
from crossrec.storage import Store

SECTION = "evaluate.groups"


def check_groups(config: Config, inputs: Mapping[str, Input]) -> None:
    """Raise ConfigError where a column that is asked for is not there."""
    asked = config.evaluate.groups
    for table, columns in (("items", asked.items), ("users", asked.users)):
        if columns:
            check_names(inputs[table], columns, f"{SECTION}.{table}")


def judge_asked_groups(
    config: Config,
    store: Store,
    ranked: pl.DataFrame,
    lists: Mapping[str, pa.Table],
    items: KnownItems,
    k: int = 10,
) -> list[dict[str, Any]]:
    """Return what `groups.judge_groups` does for the columns that the config asks for.

    Args:
        config: of the run.
        store: of the run.
        ranked: the truth, with the ranks in the lists.
        lists: by domain.
        items: of the catalogue.
        k: only the first k of a list count.

    Raises:
        ConfigError: a column is not there, or holds what is no text and no number.
    """
    asked = config.evaluate.groups
    if ranked.is_empty() or not (asked.items or asked.users):
        return []
    inputs = pin_inputs(config, store).inputs
    users = ranked[USER_ID].unique(maintain_order=True)
    values: dict[tuple[str, str], Values] = {}
    if asked.users:
        ids = users.to_arrow()
        found = user_values(inputs["users"], ids, asked.users, f"{SECTION}.users")
        values |= {("users", name): of_users for name, of_users in found.items()}
    if asked.items:
        starts = np.array([0, *(stop for _, stop in items.bounds)])
        index = index_items(items.names, starts, items.item_ids.cast(pa.large_string()))
        found = item_values(inputs["items"], index, asked.items, f"{SECTION}.items")
        values |= {("items", name): of_items for name, of_items in found.items()}
    catalogue = _catalogue(items)
    rows = ranked.select(DOMAIN, ITEM_ID).join(
        catalogue, on=[DOMAIN, ITEM_ID], how="left", maintain_order="left"
    )
    shown = _shown(lists, users, catalogue, k)
    size = len(items.item_ids)
    judged = Judged(ranked, rows["row"].to_numpy().astype(np.int64), shown, size, k)
    return judge_groups(judged, values)


def _catalogue(items: KnownItems) -> pl.DataFrame:
    """Return domain, item_id and row of every item."""
    sizes = [stop - start for start, stop in items.bounds]
    domains = np.repeat(np.arange(len(sizes)), sizes)
    columns = {
        DOMAIN: pa.array(items.names, pa.string()).take(pa.array(domains)),
        ITEM_ID: items.item_ids.cast(pa.string()),
    }
    return pl.DataFrame(pl.from_arrow(pa.table(columns))).with_row_index("row")


def _shown(
    lists: Mapping[str, pa.Table], users: pl.Series, catalogue: pl.DataFrame, k: int
) -> Shown:
    """Return all places among the first k of the lists of some users."""
    numbers = users.to_frame().with_row_index("number")
    found = []
    for domain, table in lists.items():
        first = pl.col("item_ids").list.head(k).alias(ITEM_ID)
        whole = pl.DataFrame(pl.from_arrow(table)).select(pl.col(USER_ID).cast(pl.String), first)
        # Before lists are cut into places, which are many.
        places = whole.join(numbers, on=USER_ID).explode(ITEM_ID).drop_nulls(ITEM_ID)
        inside = catalogue.filter(pl.col(DOMAIN) == domain).select(ITEM_ID, "row")
        found.append(places.join(inside, on=ITEM_ID).select("number", "row"))
    every = pl.concat(found)
    return Shown(*(every[name].to_numpy().astype(np.int64) for name in ("number", "row")))
