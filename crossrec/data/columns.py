"""Which columns of the input a config wants, and whether they are there.

footers = read_all_footers(config, inputs)
columns, texts = check_columns(config, inputs, footers)
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from crossrec.config import Config
from crossrec.data import relations
from crossrec.data.events import EVENT_COLUMNS
from crossrec.data.images import IMAGE, check_images
from crossrec.data.inputs import Footer, Input, check_column, read_footers
from crossrec.data.items import (
    CATEGORY,
    check_available_from,
    check_item_columns,
    has_category,
    wanted_columns,
)
from crossrec.errors import InputError, explain
from crossrec.schema import RATING, USER_ID, WEIGHT


def wanted_values(config: Config) -> list[str]:
    """Return the columns of schema.EVENT_VALUES to read where events have them."""
    return [RATING, WEIGHT] if config.train.objective == "mse" else [WEIGHT]


def read_all_footers(config: Config, inputs: Mapping[str, Input]) -> dict[str, list[Footer]]:
    """Read the footers of all tables, for the columns that the config can want of them."""
    data = config.data
    columns = {
        "events": [*EVENT_COLUMNS, *wanted_values(config)],
        "items": [*wanted_columns(data.text_columns, data.available_from), IMAGE],
        "users": [USER_ID],
        "forget": [USER_ID],
        "relations": relations.COLUMNS,
    }
    return {name: read_footers(source, columns[name]) for name, source in inputs.items()}


def check_columns(
    config: Config, inputs: Mapping[str, Input], footers: Mapping[str, Sequence[Footer]]
) -> tuple[list[str], tuple[str, ...]]:
    """Check all columns; return those of items to read, and those that make up the text."""
    for name, kind in EVENT_COLUMNS.items():
        check_column(inputs["events"], footers["events"], name, kind)
    for name in ("users", "forget"):
        if name in inputs:
            check_column(inputs[name], footers[name], USER_ID, "string")
    texts = check_item_columns(inputs["items"], footers["items"], config.data.text_columns)
    available_from = config.data.available_from
    check_available_from(inputs["items"], footers["items"], available_from)
    if config.model.image_backbone is not None:
        check_images(inputs["items"], footers["items"], config.model.image_backbone)
    columns = wanted_columns(texts, available_from)
    if not has_category(footers["items"]):
        columns.remove(CATEGORY)
    return columns, texts


def check_values(config: Config, events: Input, footers: Sequence[Footer]) -> tuple[str, ...]:
    """Return the columns of schema.EVENT_VALUES that are wanted and there.

    Raises:
        InputError: one holds no numbers, or the objective needs one that no file has.
    """
    found = []
    for name in wanted_values(config):
        holders = [
            pair for pair in zip(events.files, footers, strict=True) if name in pair[1].types
        ]
        files = tuple(file for file, _ in holders)
        check_column(replace(events, files=files), [own for _, own in holders], name, "number")
        found += [name] if holders else []
    if config.train.objective == "mse" and RATING not in found:
        expected = f"a column {RATING} of numbers, for train.objective=mse"
        mend = "add the column, or choose another train.objective"
        raise InputError(explain(f"data.events={config.data.events}", expected, "none", mend))
    return tuple(found)
