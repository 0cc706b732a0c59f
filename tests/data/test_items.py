import numpy as np
import pyarrow as pa
import pytest

from crossrec.data.inputs import Footer, Input, InputFile
from crossrec.data.items import (
    build_catalogue,
    check_available_from,
    check_item_columns,
    domain_ranges,
    wanted_columns,
)
from crossrec.data.rejects import Origins, count_reasons
from crossrec.errors import InputError
from crossrec.schema import CATALOGUE, domain_folder
from crossrec.storage import Store

ORIGINS = Origins("items", ("items.parquet",), np.array([0, 1000]))
STRING, NUMBER = pa.string(), pa.int64()


def items(**columns: list[str | None]) -> pa.Table:
    arrays = {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
    size = len(next(iter(columns.values())))
    return pa.table({"origin": pa.array(range(size)), **arrays})


def source() -> Input:
    return Input("items", Store("/nowhere"), (InputFile("/nowhere/i", "i.parquet", 9, "1"),))


def footer(**types: pa.DataType) -> Footer:
    return Footer((9,), {"item_id": STRING, "domain": STRING, **types})


def test_build_catalogue_sorts_by_the_bytes_of_domain_and_id() -> None:
    table = items(item_id=["é", "z", "10", "9", "Z"], domain=["b", "b", "a/b", "..", "b"])
    catalogue, _ = build_catalogue(table, (), ORIGINS)
    keys = list(zip(*catalogue.select(["domain", "item_id"]).to_pydict().values(), strict=True))
    assert keys == [("..", "9"), ("a/b", "10"), ("b", "Z"), ("b", "z"), ("b", "é")]
    names, starts = domain_ranges(catalogue)
    assert names == ("..", "a/b", "b")
    assert starts.tolist() == [0, 1, 2, 5]


def test_build_catalogue_has_the_columns_of_the_schema() -> None:
    catalogue, _ = build_catalogue(items(item_id=["1"], domain=["a"]), (), ORIGINS)
    assert catalogue.schema.names == [*CATALOGUE.names, "origin"]
    assert catalogue.select(CATALOGUE.names).cast(CATALOGUE).to_pylist() == [
        {"domain": "a", "item_id": "1", "text": "", "category": None, "available_day": None}
    ]


def test_build_catalogue_knows_the_day_from_which_an_item_can_be_had() -> None:
    moments = ["1970-01-03", "1970-01-02 23:59:59.000000Z", "soon", None]
    table = items(item_id=["a", "b", "c", "d"], domain=["x"] * 4, from_day=moments)
    catalogue, rejects = build_catalogue(table, (), ORIGINS, "from_day")
    assert catalogue["available_day"].to_pylist() == [2, 1, None, None]
    assert not len(rejects)


def test_check_available_from_wants_the_column_that_the_config_names() -> None:
    check_available_from(source(), [footer()], "available_from")
    check_available_from(source(), [footer(from_day=pa.date32())], "from_day")
    with pytest.raises(
        InputError, match=r"i\.parquet: expected a column from_day .*found no such column"
    ):
        check_available_from(source(), [footer()], "from_day")
    with pytest.raises(InputError, match="found available_from of type double"):
        check_available_from(source(), [footer(available_from=pa.float64())], "available_from")


def test_build_catalogue_joins_texts_and_normalises_white_space() -> None:
    table = items(
        item_id=["1", "2", "3", "4"],
        domain=["a"] * 4,
        title=["  Blue\n\tkettle ", "Tea", None, " "],
        brand=["Acme\u00a0Co", None, None, ""],
        category=["home", None, None, None],
    )
    catalogue, _ = build_catalogue(table, ("title", "brand"), ORIGINS)
    assert catalogue.column("text").to_pylist() == ["Blue kettle Acme Co", "Tea", "", ""]
    assert catalogue.column("category").to_pylist() == ["home", None, None, None]


def test_build_catalogue_keeps_the_first_of_equal_keys() -> None:
    table = items(item_id=["1", "1", "1"], domain=["b", "a", "b"], title=["first", "a", "second"])
    catalogue, rejects = build_catalogue(table, ("title",), ORIGINS)
    assert catalogue.column("text").to_pylist() == ["a", "first"]
    assert rejects.select(["reason", "file_row", "domain"]).to_pylist() == [
        {"reason": "duplicate item", "file_row": 2, "domain": "b"}
    ]


def test_build_catalogue_rejects_items_without_a_key() -> None:
    table = items(item_id=[None, "", "1", "1", "1"], domain=["a", "a", None, "", "a"])
    catalogue, rejects = build_catalogue(table, (), ORIGINS)
    assert catalogue.num_rows == 1
    assert count_reasons(rejects) == {
        "null item_id": 1,
        "empty item_id": 1,
        "null domain": 1,
        "empty domain": 1,
    }


def test_build_catalogue_refuses_a_domain_too_long_for_a_folder() -> None:
    longest, longer = "書" * 26 + "ab", "書" * 26 + "abc"
    # A character of Chinese is three bytes, of which each is told by three: 26 x 9 + 2.
    name = f"{domain_folder(longest)}.safetensors"
    assert len(name) == 255
    build_catalogue(items(item_id=["1"], domain=[longest]), (), ORIGINS)
    expected = rf"domain '{longer}': expected .* at most 236 bytes .*, found 237 bytes .*; give"
    with pytest.raises(InputError, match=expected):
        build_catalogue(items(item_id=["1"], domain=[longer]), (), ORIGINS)


def test_wanted_columns_names_each_once() -> None:
    names = ["item_id", "domain", "category", "title", "available_from"]
    assert wanted_columns(("category", "title")) == names


def test_check_item_columns_takes_the_default_columns_that_some_file_has() -> None:
    files = Input("items", Store("/nowhere"), source().files * 2)
    footers = [footer(title=STRING), footer(brand=pa.dictionary(pa.int8(), STRING))]
    assert check_item_columns(files, footers, None) == ("title", "brand")


def test_check_item_columns_does_without_any_text() -> None:
    assert check_item_columns(source(), [footer()], None) == ()


def test_check_item_columns_reads_numbers_as_text() -> None:
    assert check_item_columns(source(), [footer(year=NUMBER)], ("year",)) == ("year",)


@pytest.mark.parametrize(
    ("types", "names", "message"),
    [
        ({}, ("subtitle",), "i.parquet: expected a column subtitle of text, found no such column"),
        (
            {"title": pa.list_(STRING)},
            None,
            "expected a column title of text, found title of type list<.*>; "
            "change data.text_columns",
        ),
        ({"item_id": NUMBER}, None, "column item_id of type string, found item_id of type int64"),
    ],
)
def test_check_item_columns_names_what_cannot_be_read(
    types: dict[str, pa.DataType], names: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_item_columns(source(), [footer(**types)], names)
