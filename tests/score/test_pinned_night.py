"""A night with editors' rules, with the model of the night that tests share."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from crossrec.data.prepare import prepare
from crossrec.errors import ConfigError, CrossrecError
from crossrec.schema import domain_folder
from crossrec.score.pipeline import score
from crossrec.verify import verify_run
from tests.nights import Night, change

pytestmark = pytest.mark.slow


def test_pins_of_a_night_come_first_and_publication_holds_lists_against_them(night: Night) -> None:
    store, folder = night.store, "runs/edited"
    model = night.manifest["model"].removeprefix("models/")
    plain = night.lists("shop")
    shown = pc.value_counts(plain["item_ids"].combine_chunks().flatten()).to_pylist()
    by_count = [entry["values"] for entry in sorted(shown, key=lambda entry: entry["counts"])]
    rare, common = by_count[0], by_count[-1]
    rules = [
        {"action": "pin", "domain": "shop", "where": [["item_id", "=", rare]]},
        {"action": "exclude", "domain": "shop", "where": [["item_id", "=", common]]},
    ]
    config = change(night.config, run_id="edited", score={"model": model, "rules": rules})
    prepare(config, store)
    score(config, store)
    plan = store.read_json(f"{folder}/plan.json")
    assert plan["scores"]["unit"] == "none"
    assert [rule["action"] for rule in plan["rules"]] == ["pin", "exclude"]
    files = verify_run(store, folder, plan).files
    paths = [file["path"] for file in files if file["domain"] == "shop"]
    lists = pa.concat_tables(store.read_parquet(path) for path in paths).to_pylist()
    had = {
        event["user_id"]
        for event in night.events.to_pylist()
        if (event["item_id"], event["domain"]) == (rare, "shop")
    }
    assert len(had) < len(lists)
    for row in lists:
        assert (row["item_ids"][0] == rare) == (row["user_id"] not in had)
        assert common not in row["item_ids"]
    with pytest.raises(ConfigError, match=r"another plan \(differs in.* rules"):
        score(change(config, score={"rules": []}), store)
    # Another pin than the lists were made with: as if they had lost theirs.
    path = f"{folder}/candidates/edits/{domain_folder('shop')}.parquet"
    edits = store.read_parquet(path)
    place = pa.array(edits["place"].to_numpy()[::-1].copy())
    store.write_parquet(path, edits.set_column(1, "place", place))
    with pytest.raises(CrossrecError, match=r"pinned by score\.rules"):
        verify_run(store, folder, plan)
