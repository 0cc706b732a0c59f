"""A store that is slow, breaks connections, never answers, or takes a permission away."""

from typing import Any

import pytest

from crossrec.current import read_current
from crossrec.errors import StorageError
from crossrec.publish import publish
from crossrec.storage import Store
from tests.proxy import FAULTS, FaultyStore, Headers, proxy_to
from tests.runs import BUCKETS, DOMAINS, config_of, write_run


@pytest.mark.slow
def test_publication_over_a_faulty_store_loses_nothing(
    s3_root: str, s3_store_options: dict[str, Any]
) -> None:
    faulty = FaultyStore()
    with proxy_to(s3_store_options["endpoint_url"], faulty) as address:
        # The limit for a reply that does not come is 60 s by default.
        patient = {"config_kwargs": {"read_timeout": 2}}
        store = Store(s3_root, {**s3_store_options, "endpoint_url": address, **patient})
        for run_id in ("r1", "r2"):
            write_run(store, run_id)
            publish(config_of(store, run_id), store)
    assert {*faulty.met} == {*FAULTS}
    clean = Store(s3_root, s3_store_options)
    current = read_current(clean)
    assert current
    assert current["run_id"] == "r2"
    manifest = clean.read_json("runs/r2/manifest.json")
    assert len(manifest["files"]) == BUCKETS * len(DOMAINS)
    assert not [name for name in clean.list("") if "claims" in name]


@pytest.mark.parametrize("closed", ["/manifest.json", "/current.json", "bucket-00001.abc.parquet"])
def test_permission_lost_half_way_is_told_and_a_rerun_goes_on(
    s3_root: str, s3_store_options: dict[str, Any], closed: str
) -> None:
    is_closed = True

    def refuse(method: str, path: str, headers: Headers) -> str:
        reads_list = closed.endswith(".parquet") and method == "GET"
        if is_closed and path.endswith(closed) and (reads_list or method == "PUT"):
            return "403 AccessDenied"
        return "pass"

    write_run(Store(s3_root, s3_store_options), "r1")
    with proxy_to(s3_store_options["endpoint_url"], refuse) as address:
        store = Store(s3_root, {**s3_store_options, "endpoint_url": address})
        with pytest.raises(StorageError, match=f"{closed}: expected credentials .* AccessDenied"):
            publish(config_of(store, "r1"), store)
        assert read_current(store) is None
        is_closed = False
        publish(config_of(store, "r1"), store)
        assert read_current(store) is not None
