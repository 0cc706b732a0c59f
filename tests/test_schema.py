import pytest

from crossrec.schema import NO_VALUE, bucket_name, domain_folder, domain_of_folder


@pytest.mark.parametrize(
    "domain",
    [
        "shop",
        "a/b",
        "..",
        ".",
        "",
        "día 1.b",
        "🚀",
        "%2F",
        "a=b",
        "domain=x",
        "a\\b",
        "*",
        NO_VALUE,
    ],
)
def test_domain_survives_its_folder(domain: str) -> None:
    assert domain_of_folder(domain_folder(domain)) == domain


@pytest.mark.parametrize("domain", ["a/b", "..", ".", "../..", "", "a\\b", "*?[x]", "a b"])
def test_domain_folder_is_one_plain_name(domain: str) -> None:
    folder = domain_folder(domain)
    assert folder.startswith("domain=")
    assert not set(folder.removeprefix("domain=")) & set("/\\.*?[] ")


def test_bucket_names_sort_as_their_numbers() -> None:
    names = [bucket_name(number) for number in (2, 10, 99_999)]
    assert names == sorted(names) == ["bucket-00002", "bucket-00010", "bucket-99999"]
