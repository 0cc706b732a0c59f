from pathlib import Path

from crossrec.data.histories import DomainRange, Prepared
from crossrec.data.imagefile import fetch_images
from crossrec.storage import Store
from tests.pictures import store_pictures

SHOP, VIDEO = DomainRange("shop", 0, 3, 5), DomainRange("video", 3, 6, 5)
PREPARED = Prepared("prepared/x", "x", (SHOP, VIDEO), 1, 100, 10, 6, 0)
PICTURES = {0: b"red", 2: b"blue!", 3: b"red", 5: b"green"}


def test_each_image_is_there_once_by_the_rows_that_have_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store_pictures(store, PREPARED, PICTURES)
    images = fetch_images(store, PREPARED)
    assert len(images) == 3
    found = {row: images.read(number) for row, number in enumerate(images.numbers_I) if number >= 0}
    assert found == PICTURES
    assert images.numbers_I[0] == images.numbers_I[3]


def test_of_one_domain_alone_only_its_images_are_taken(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store_pictures(store, PREPARED, PICTURES)
    images = fetch_images(store, PREPARED.only(VIDEO))
    assert [number >= 0 for number in images.numbers_I] == [True, False, True]
    assert [images.read(number) for number in range(len(images))] == [b"red", b"green"]


def test_a_catalogue_of_which_no_image_was_kept_has_none(tmp_path: Path) -> None:
    images = fetch_images(Store(str(tmp_path)), PREPARED)
    assert len(images) == 0
    assert images.numbers_I.tolist() == [-1] * 6
