"""What prepare does, in one shot of Polars on one machine: the peer of `bench_prepare`.

The same checks with the same reasons, rejected rows kept, items looked up, duplicates set aside,
whole users in buckets and what each item had on each day; all of it in memory, and no rerun takes
anything up.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from crossrec.bench.memory import MemoryPeak

if TYPE_CHECKING:
    import polars as pl

KEYS = ("user_id", "item_id", "domain")
YEAR_1_US, US_PER_DAY = -62_135_596_800_000_000, 86_400_000_000


def prepare_in_one_shot(data: Path, folder: Path, buckets: int) -> dict[str, float]:
    """Write histories, activity and rejects of data/events; return seconds, users, peak bytes."""
    import polars as pl

    folder.mkdir(parents=True)
    with MemoryPeak() as memory:
        began = time.perf_counter()
        items = pl.read_parquet(data / "items" / "*.parquet")
        items = items.unique(["domain", "item_id"]).sort("domain", "item_id").with_row_index("row")
        items.write_parquet(folder / "catalogue.parquet")
        events = pl.read_parquet(data / "events" / "*.parquet", include_file_paths="file")
        events = events.join(
            items.select("domain", "item_id", pl.col("row").cast(pl.Int32)),
            on=["domain", "item_id"],
            how="left",
        ).with_columns(_reason(items["domain"].unique().to_list()))
        events.filter(pl.col("reason") != "").write_parquet(folder / "rejects.parquet")
        users = _write_buckets(events.filter(pl.col("reason") == ""), folder, buckets)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "users": users, "peak_bytes": memory.peak_bytes}


def _reason(domains: list[str]) -> "pl.Expr":
    """Return the first fault of a row, or ""."""
    import polars as pl

    tomorrow = int((time.time() + 86_400) * 1e6)
    stamp = pl.col("timestamp").cast(pl.Int64)
    faults = [
        *((pl.col(name).is_null(), f"null {name}") for name in KEYS),
        *((pl.col(name) == "", f"empty {name}") for name in KEYS),
        (stamp.is_null(), "null timestamp"),
        (stamp > tomorrow, "timestamp in the future"),
        (stamp < YEAR_1_US, "timestamp before year 1"),
        (~pl.col("domain").is_in(domains), "unknown domain"),
        (pl.col("row").is_null(), "unknown item"),
    ]
    reasons = (pl.when(fault).then(pl.lit(reason)) for fault, reason in faults)
    return pl.coalesce(*reasons, pl.lit("")).alias("reason")


def _write_buckets(events: "pl.DataFrame", folder: Path, buckets: int) -> int:
    """Write what each bucket has; return the number of users."""
    import polars as pl

    events = events.select("user_id", "row", pl.col("timestamp").cast(pl.Int64))
    events = events.with_columns((pl.col("user_id").hash(17) % buckets).alias("bucket"))
    events = events.sort("bucket", "user_id", "timestamp", "row")
    key = pl.struct("user_id", "row", "timestamp")
    is_copy = (key == key.shift()).fill_null(False)
    events.filter(is_copy).write_parquet(folder / "duplicates.parquet")
    events = events.filter(~is_copy)
    users = 0
    for (bucket,), found in events.partition_by("bucket", as_dict=True).items():
        histories = found.group_by("user_id", maintain_order=True).agg("row", "timestamp")
        histories.write_parquet(folder / f"histories-{bucket}.parquet")
        day = (pl.col("timestamp") // US_PER_DAY).cast(pl.Int32).alias("day")
        activity = found.group_by("row", day).agg(pl.len().alias("events")).sort("row", "day")
        activity.write_parquet(folder / f"activity-{bucket}.parquet")
        users += len(histories)
    return users
