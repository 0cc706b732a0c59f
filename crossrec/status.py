"""The last runs as a table, from storage alone: needs neither Ray nor torch.

    rows = last_runs(store, 10)      # newest first; what summary.json says of each
    print(to_table(rows))

In: the store. Out: rows for people and programs. Of many runs no more are opened than are asked
for: by the dates that their names begin with, and as many again of those without a date.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crossrec.current import read_current
from crossrec.lease import DEAD_AFTER_S, seconds_since_beat
from crossrec.runsummary import read_summary
from crossrec.storage import Store

THREADS = 16
"""Summaries read at once: each is a request or two to wait for."""

DATED = re.compile(r"\d{4}-\d\d-\d\d")

SILENT_S = 2 * DEAD_AFTER_S
"""A job that runs and has not been heard of for so long has died; clocks may differ a little."""

STAGES = ("prepare", "finetune", "evaluate", "gate", "score", "publish", "study", "tune")
"""The order of columns; a stage that no run has gets none, and others come after these."""


def last_runs(store: Store, count: int) -> list[dict[str, Any]]:
    """Return what is known of the last runs, the one that began last first."""
    names = store.list("runs")[::-1]
    dated = [name for name in names if DATED.match(name)]
    others = [name for name in names if not DATED.match(name)]
    current = read_current(store)
    published = current["run_id"] if current else None
    with ThreadPoolExecutor(THREADS) as pool:
        looked_at = [*dated[:count], *others[:count]]
        rows = list(pool.map(lambda name: _row(store, name, name == published), looked_at))

    def began(row: dict[str, Any]) -> str:
        return row["began"] or (row["run_id"] if DATED.match(row["run_id"]) else "")

    return sorted(rows, key=began, reverse=True)[:count]


def _row(store: Store, run_id: str, is_current: bool) -> dict[str, Any]:
    """Return a run's row; `status` is unknown where there is no summary, died where a kill was."""
    said = read_summary(store, run_id) or {"status": "unknown"}
    status = said["status"]
    if status == "running":
        silent = seconds_since_beat(store, run_id)
        status = "died" if silent is None or silent > SILENT_S else "running"
    stages = said.get("stages", {})
    command = said.get("command")
    at_work = [name for name, entry in stages.items() if entry["status"] == "running"]
    ended_in = None if status == "done" else said.get("failed_stage") or next(iter(at_work), None)
    rows, metrics = said.get("rows", {}), said.get("metrics", {})
    return {
        "run_id": run_id,
        "is_current": is_current,
        "status": status,
        "command": command,
        "stage": ended_in,
        "attempts": said.get("attempts", {}).get(command),
        # Of the last job that worked on the run: what is looked for is what happened last.
        "began": said.get("attempt_began"),
        "seconds": said.get("seconds"),
        "stages": {name: entry.get("total_seconds") for name, entry in stages.items()},
        "rows": rows.get("in"),
        "rejected_share": rows.get("rejected_share"),
        "lists": rows.get("out"),
        "ndcg@10": metrics.get("ndcg@10"),
        "best_baseline_ndcg@10": metrics.get("best_baseline_ndcg@10"),
        "bytes": said.get("bytes"),
        "error": said.get("error"),
        # Why the gate wants somebody to look, where it does.
        "alert": said.get("alert") or None,
    }


def to_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as lines of columns; * is what readers follow, - what is not known."""
    found = {name for row in rows for name in row["stages"]}
    stages = [*(name for name in STAGES if name in found), *sorted(found - set(STAGES))]
    heads = ["run", "status", "began", *stages, "rows", "rejected", "lists", "ndcg@10"]
    lines = [[*heads, "baseline", "size"], *(_cells(row, stages) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    # Words to the left, numbers to the right.
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: dict[str, Any], stages: Sequence[str]) -> list[str]:
    status = row["status"]
    if row["command"] not in (None, "nightly"):
        status = f"{row['command']} {status}"
    if row["alert"]:
        status += ", look"
    if row["stage"]:
        status += f" in {row['stage']}"
    if (row["attempts"] or 0) > 1:
        status += f" ({row['attempts']} times)"
    return [
        f"{row['run_id']}{' *' if row['is_current'] else ''}",
        status,
        (row["began"] or "-").replace("T", " ")[:16],
        *(_say(row["stages"].get(name), ",.1f") for name in stages),
        _say(row["rows"], ","),
        _say(row["rejected_share"], ".2%"),
        _say(row["lists"], ","),
        _say(row["ndcg@10"], ".4f"),
        _say(row["best_baseline_ndcg@10"], ".4f"),
        _say_bytes(row["bytes"]),
    ]


def _say(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _say_bytes(count: int | None) -> str:
    """Return bytes in decimal units, three digits of them.

    >>> [_say_bytes(count) for count in (None, 999, 4_197_241, 12_345_678_901)]
    ['-', '999 B', '4.2 MB', '12.3 GB']
    """
    if count is None:
        return "-"
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1_000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" or size >= 99.5 else f"{size:.1f} {units[0]}"
