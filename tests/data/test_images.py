import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from crossrec.config import Config
from crossrec.data import images
from crossrec.data import picture as decoding
from crossrec.data.images import image_rows
from crossrec.data.inputs import list_input, plan_chunks, read_footers
from crossrec.data.picture import TOO_LARGE, UNDECODABLE, BadImage, decode_image
from crossrec.data.prepare import input_digest, prepare
from crossrec.errors import ConfigError
from crossrec.storage import Store
from tests.data.test_prepare import DAY_1, write_events
from tests.pictures import picture

RED, GREEN = picture((200, 0, 0)), picture((0, 200, 0), format="JPEG")


def encoded(image: Image.Image, form: str = "PNG", **save: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **save)
    return sink.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_decode_image_reads_common_formats(form: str) -> None:
    image = decode_image(picture((250, 0, 0), (20, 10), format=form))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    red, green, blue = image.tobytes()[-3:]
    assert red > 230
    assert max(green, blue) < 20


def test_decode_image_puts_what_is_transparent_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert decode_image(encoded(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_decode_image_turns_a_photograph_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert decode_image(data).size == (20, 40)


@pytest.mark.parametrize("quickly", [False, True])
@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", UNDECODABLE),
        (b"no picture", UNDECODABLE),
        (RED[: len(RED) // 2], UNDECODABLE),
        (GREEN[: len(GREEN) // 2], UNDECODABLE),
        (RED[:50] + bytes(20) + RED[70:], UNDECODABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", UNDECODABLE),
        (encoded(Image.new("1", (10_000, 9_000))), TOO_LARGE),
        (encoded(Image.new("1", (15_000, 12_000))), TOO_LARGE),
    ],
)
def test_decode_image_tells_what_is_wrong(data: bytes, fault: str, quickly: bool) -> None:
    with pytest.raises(BadImage, match=fault):
        decode_image(data, quickly)


def test_decode_image_refuses_more_bytes_than_it_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LARGEST_BYTES", len(RED) - 1)
    with pytest.raises(BadImage, match=TOO_LARGE):
        decode_image(RED)


ITEMS: list[tuple[str | None, str, bytes | None]] = [
    ("b", "video", RED),
    ("a", "shop", None),
    (None, "shop", GREEN),
    ("b", "shop", GREEN),
    ("a", "video", b"broken"),
    ("b", "shop", RED),
    ("c", "shop", b""),
    ("0", "video", RED),
]
"""The third has no id and is rejected; the sixth is the fourth again."""


def write_input(folder: Path, kind: pa.DataType, **columns: Any) -> None:
    for number, part in enumerate((ITEMS[:3], ITEMS[3:])):
        ids, domains, data = zip(*part, strict=True)
        table = {"item_id": ids, "domain": domains, "image": pa.array(data, kind), **columns}
        (folder / "items").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), folder / f"items/{number}.parquet", row_group_size=2)
    write_events(folder / "events/0.parquet", ("ada", "b", "shop", DAY_1))


def make_config(folder: Path, image_backbone: str | None = "some/vit") -> Config:
    data = {name: str(folder / name) for name in ("events", "items")}
    return Config.model_validate(
        {
            "run_id": "night",
            "data": {**data, "max_reject_share": 0.5},
            "storage": {"root": str(folder / "store")},
            "model": {"image_backbone": image_backbone},
        }
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()], ids=str)
def test_prepare_keeps_images_and_counts_those_it_cannot(
    tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(tmp_path, kind)
    config = make_config(tmp_path)
    store = Store(config.storage.root)
    summary = prepare(config, store)
    assert summary["items"] == 6
    assert summary["images"] == {"kept": 3, "undecodable": 1, "too large": 0, "missing": 2}
    rows = image_rows(store, summary["prepared"])
    found = {(row["domain"], row["place"]): row for row in rows.to_dicts()}
    # Of equal items the first counts, and places are those of the sorted catalogue.
    assert set(found) == {("shop", 1), ("video", 0), ("video", 2)}
    assert found["video", 0]["image_hash"] == found["video", 2]["image_hash"]
    for place, data in ((("shop", 1), GREEN), (("video", 0), RED)):
        path = images.bytes_path(summary["prepared"], found[place]["part"])
        kept = {row["image_hash"]: row["image"] for row in store.read_parquet(path).to_pylist()}
        assert kept[found[place]["image_hash"]] == data


@pytest.mark.usefixtures("ray_cluster")
def test_prepare_leaves_images_alone_where_no_model_reads_them(tmp_path: Path) -> None:
    write_input(tmp_path, pa.binary())
    config = make_config(tmp_path, None)
    store = Store(config.storage.root)
    summary = prepare(config, store)
    assert summary["images"] is None
    assert "images" not in store.list(summary["prepared"])
    inputs = {name: list_input(name, str(tmp_path / name), {}) for name in ("events", "items")}
    assert input_digest(config, inputs) != input_digest(make_config(tmp_path), inputs)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("kind", "found"), [(None, "no such column"), (pa.string(), "image of type string in")]
)
def test_prepare_tells_of_a_missing_column_of_images(
    tmp_path: Path, kind: pa.DataType | None, found: str
) -> None:
    write_input(tmp_path, pa.binary())
    for path in (tmp_path / "items").iterdir():
        table = pq.read_table(path).drop_columns("image")
        if kind is not None:
            table = table.append_column("image", pa.nulls(len(table), kind))
        pq.write_table(table, path)
    config = make_config(tmp_path)
    with pytest.raises(ConfigError, match=f"some/vit: expected a column image .*found {found}"):
        prepare(config, Store(config.storage.root))
    assert not (tmp_path / "store/prepared").exists()


def test_images_are_never_all_in_memory(tmp_path: Path) -> None:
    """One row group of 128 MiB is read within two of its pages, of 1,024 images each."""
    noise = bytes(range(256)) * 128
    count = 4_096
    data = [number.to_bytes(4, "big") + noise for number in range(count)]
    folder = tmp_path / "items"
    folder.mkdir()
    table = pa.table({"image": pa.array(data, pa.binary())})
    pq.write_table(
        table, folder / "0.parquet", row_group_size=count, use_dictionary=False, compression="none"
    )
    del table, data
    source = list_input("items", str(folder), {})
    (chunk,) = plan_chunks(read_footers(source, ["image"]), images.CHUNK_ROWS)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        found = sum(1 for _ in images._read_images(source, chunk))
    finally:
        pa.set_memory_pool(before)
    assert found == count
    assert 0 < pool.max_memory() < 64 * 2**20
