import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import crossrec
from crossrec import schema
from crossrec.errors import InputError, StorageError
from crossrec.readers import COLUMNS
from crossrec.storage import Store
from tests.runs import BUCKETS, DOMAINS, bucket_user_ids, publish_run, scores_file

ROOT = Path(__file__).parents[1]
EVERYONE = sorted(user for bucket in range(BUCKETS) for user in bucket_user_ids(bucket))


def pairs(reader: pa.RecordBatchReader) -> list[tuple[str, str]]:
    table = reader.read_all()
    assert table.column_names == [*COLUMNS]
    return sorted(zip(table["user_id"].to_pylist(), table["domain"].to_pylist(), strict=True))


def test_read_scores_gives_what_is_published(store: Store) -> None:
    publish_run(store, "r1")
    table = crossrec.read_scores(store.root).read_all()
    assert pairs(crossrec.read_scores(store.root)) == sorted(
        (user, domain) for user in EVERYONE for domain in DOMAINS
    )
    for name in ("item_ids", "scores"):
        assert table.schema.field(name).type == schema.SCORES.field(name).type
    assert set(map(tuple, table["item_ids"].to_pylist())) == {("i1", "i2")}


def test_read_scores_of_a_domain_and_of_users(store: Store) -> None:
    publish_run(store, "r1")
    root, two = store.root, [EVERYONE[0], EVERYONE[-1]]
    assert pairs(crossrec.read_scores(root, domain="a/b")) == [(user, "a/b") for user in EVERYONE]
    assert pairs(crossrec.read_scores(root, domain="shop", user_ids=two)) == [
        (user, "shop") for user in two
    ]
    assert pairs(crossrec.read_scores(root, user_ids=[*two, "nobody"], domain="shop")) == [
        (user, "shop") for user in two
    ]
    assert pairs(crossrec.read_scores(root, user_ids=[])) == []


def test_only_the_buckets_of_the_users_are_opened(tmp_path: Path) -> None:
    """The other bucket's files, and the other domain's, are not there at all."""
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    for bucket, domain in ((1, "shop"), (0, "a/b"), (1, "a/b")):
        store.delete(scores_file("runs/r1", bucket, domain))
    users = bucket_user_ids(0)
    found = pairs(crossrec.read_scores(store.root, domain="shop", user_ids=users))
    assert found == [(user, "shop") for user in users]
    with pytest.raises(OSError, match="bucket-00001"):
        crossrec.read_scores(store.root, domain="shop").read_all()


def test_read_scores_never_lists(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_run(store, "r1")

    def refuse(*_: Any) -> None:
        raise AssertionError("listed")

    monkeypatch.setattr(Store, "list", refuse)
    # Files that no manifest names.
    store.write_bytes(scores_file("runs/r1", 7, "shop"), b"no Parquet")
    assert len(pairs(crossrec.read_scores(store.root))) == len(EVERYONE) * len(DOMAINS)


def test_manifest_without_buckets_is_read_whole(tmp_path: Path) -> None:
    """Those of earlier versions do not say them."""
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    manifest = store.read_json("runs/r1/manifest.json")
    manifest.pop("buckets")
    for file in manifest["files"]:
        file.pop("bucket")
    store.write_json("runs/r1/manifest.json", manifest)
    store.write_json("current.json", {"run_id": "r1", "manifest": "runs/r1/manifest.json"})
    found = pairs(crossrec.read_scores(store.root, domain="shop", user_ids=EVERYONE[:1]))
    assert found == [(EVERYONE[0], "shop")]


def test_read_scores_says_what_is_wrong(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(StorageError, match=r"current\.json: expected a publication, found none"):
        crossrec.read_scores(store.root)
    publish_run(store, "r1")
    with pytest.raises(InputError, match="expected one of the domains 'a/b', 'shop', found 'sho'"):
        crossrec.read_scores(store.root, domain="sho")
    manifest = store.read_bytes("runs/r1/manifest.json")
    store.write_bytes("runs/r1/manifest.json", manifest + b" ")
    with pytest.raises(StorageError, match="expected the manifest that was published"):
        crossrec.read_scores(store.root)


def test_a_manifest_that_goes_while_readers_are_switched_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of a purge, between a reader's look at current.json and at its manifest."""
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    after = store.read_bytes("current.json")
    before = {"run_id": "r1", "manifest": "runs/r1/manifest-purging.json", "sha256": "ab" * 32}
    store.write_json("current.json", before)
    with pytest.raises(StorageError, match=r"purging\.json: expected the manifest .*, found none"):
        crossrec.read_scores(store.root)
    read_bytes = Store.read_bytes

    def switched(self: Store, path: str) -> bytes:
        if path == before["manifest"]:
            store.write_bytes("current.json", after)
        return read_bytes(self, path)

    monkeypatch.setattr(Store, "read_bytes", switched)
    assert len(pairs(crossrec.read_scores(store.root))) == len(EVERYONE) * len(DOMAINS)


def test_import_is_light(tmp_path: Path) -> None:
    """Neither the import nor reading needs Ray or torch; the import alone not even Arrow."""
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    code = (
        "import sys, crossrec\n"
        "assert 'pyarrow' not in sys.modules\n"
        f"print(crossrec.read_scores({store.root!r}).read_all().num_rows)\n"
        "assert not {'ray', 'torch', 's3fs', 'polars', 'pandas'} & set(sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.stdout.strip() == str(len(EVERYONE) * len(DOMAINS)), ended.stderr


def snippets(language: str) -> list[str]:
    """Return README's code on reading the scores, in its order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Reading the scores")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def adapted(code: str, store: Store) -> str:
    """Return a snippet for the store of this test, which has other users and domains."""
    changes = {"/data/recs": store.root, "u000017": EVERYONE[0], "video": "shop"}
    for before, after in changes.items():
        code = code.replace(before, after)
    return code


def test_readme_reads_scores_from_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    names: dict[str, Any] = {}
    for code in snippets("python"):
        if "spark" not in code:
            exec(adapted(code, store), names)
    said = capsys.readouterr().out
    assert said.count(f"'{EVERYONE[0]}'") == 1
    assert names["lists"].read_all().num_rows == 0, "the snippet has read it"
    # pyarrow alone, and Polars.
    assert names["scores"].to_table().num_rows == len(EVERYONE) * len(DOMAINS)
    found = names["best"].collect().sort("user_id")
    assert found.columns == ["user_id", "domain", "item_id", "score"]
    assert set(found["domain"]) == {"shop"}
    assert found["item_id"].to_list() == ["i1", "i2"] * len(EVERYONE)


def test_readme_reads_scores_from_duckdb(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    (code,) = snippets("sql")
    connection = duckdb.connect()
    rows: list[tuple[Any, ...]] = []
    for statement in adapted(code, store).split(";"):
        if statement.strip():
            rows = connection.execute(statement).fetchall()
    assert sorted(rows) == [
        (EVERYONE[0], domain, item, score)
        for domain in DOMAINS
        for item, score in (("i1", 2.0), ("i2", 1.0))
    ]


def test_readme_reads_scores_from_spark(tmp_path: Path) -> None:
    sql = pytest.importorskip("pyspark.sql")
    store = Store(str(tmp_path))
    publish_run(store, "r1")
    current = json.loads((tmp_path / "current.json").read_text())
    manifest = json.loads((tmp_path / current["manifest"]).read_text())
    spark = sql.SparkSession.builder.master("local[1]").getOrCreate()
    names = {"spark": spark, "root": store.root, "current": current, "manifest": manifest}
    (code,) = [code for code in snippets("python") if "spark" in code]
    exec(code, names)
    assert names["scores"].count() == len(EVERYONE) * len(DOMAINS)
    spark.stop()
