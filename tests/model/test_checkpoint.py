import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.errors import CrossrecError
from crossrec.model.backbone import TextBackbone, encode_texts, load_backbone, weights_digest
from crossrec.model.checkpoint import (
    Model,
    load_fusions,
    load_model,
    load_model_backbone,
    save_fusions,
    save_model,
    state_from_bytes,
    state_to_bytes,
)
from crossrec.model.fusion import VARIANTS, Fusion
from crossrec.model.inference import item_state
from crossrec.model.recommender import Recommender
from crossrec.schema import CATALOGUE
from crossrec.storage import Store

FOLDER = "models/2026-06-30-1f2e3d4c"
ITEMS = pa.table(
    {"domain": ["shop", "shop", "video"], "item_id": ["a", "b", "a"], "events": [3, 1, 2]}
)


@pytest.fixture
def backbone(tiny_backbone: str) -> TextBackbone:
    return load_backbone(tiny_backbone, max_tokens=16)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(17)
    settings = ModelConfig(width=16, layers=1, heads=2, text_tokens=16)
    recommender = Recommender(settings, text_width=32, items=3, domains=2)
    with torch.no_grad():
        for tensor in recommender.state_dict().values():
            tensor.normal_()
    facts = {"ndcg": 0.25, "days": [1, 2]}
    return Model(settings, recommender.eval(), ITEMS, ("shop", "video"), facts)


def test_load_model_returns_what_save_model_wrote(
    store: Store, model: Model, backbone: TextBackbone
) -> None:
    save_model(store, FOLDER, model, backbone)
    loaded = load_model(store, FOLDER)
    inputs = (torch.randn(3, 32), torch.tensor([0, -1, 2]), torch.tensor([3.0, 0.0, 2.0]))
    one, other = item_state(model.recommender, *inputs), item_state(loaded.recommender, *inputs)
    assert torch.equal(one.vectors_IW, other.vectors_IW)
    assert torch.equal(one.texts_IW, other.texts_IW)
    assert not loaded.recommender.training
    assert loaded.items == ITEMS
    for name in ("settings", "domains", "facts"):
        assert getattr(loaded, name) == getattr(model, name)


def test_load_model_backbone_encodes_as_the_saved_one(
    store: Store, model: Model, backbone: TextBackbone
) -> None:
    save_model(store, FOLDER, model, backbone)
    loaded = load_model_backbone(store, FOLDER, model.settings)
    assert weights_digest(loaded) == weights_digest(backbone)
    texts = ["chess", "deep space"]
    assert np.array_equal(encode_texts(loaded, texts), encode_texts(backbone, texts))


def test_save_model_writes_no_pickle(tmp_path: Path, model: Model, backbone: TextBackbone) -> None:
    save_model(Store(str(tmp_path)), FOLDER, model, backbone)
    endings = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert endings == {".json", ".safetensors", ".parquet"}


def test_load_model_refuses_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_bytes(f"{FOLDER}/model.safetensors", b"")
    with pytest.raises(CrossrecError, match=r"expected a model folder, found no config.json"):
        load_model(store, FOLDER)


def test_load_fusions_returns_what_save_fusions_wrote(
    store: Store, model: Model, backbone: TextBackbone
) -> None:
    save_model(store, FOLDER, model, backbone)
    fusions = {variant: Fusion(len(model.domains)) for variant in VARIANTS}
    for fusion in fusions.values():
        for tensor in fusion.state_dict().values():
            tensor.normal_()
    save_fusions(store, FOLDER, fusions)
    loaded = load_fusions(store, FOLDER)
    assert list(loaded) == list(VARIANTS)
    for variant, fusion in fusions.items():
        assert not loaded[variant].training
        found = loaded[variant].state_dict()
        assert all(torch.equal(found[name], part) for name, part in fusion.state_dict().items())


def test_load_fusions_refuses_a_model_that_was_not_finished(
    tmp_path: Path, model: Model, backbone: TextBackbone
) -> None:
    store = Store(str(tmp_path))
    save_model(store, FOLDER, model, backbone)
    with pytest.raises(CrossrecError, match=r"expected a model folder, found no fusion"):
        load_fusions(store, FOLDER)


def catalogue(*items: tuple[str, str]) -> pa.Table:
    rows = [{"domain": domain, "item_id": item_id, "text": ""} for domain, item_id in items]
    return pa.Table.from_pylist(rows, schema=CATALOGUE)


def test_id_rows_follow_items_to_their_new_rows(model: Model) -> None:
    # A new item came first, shop's "a" is gone, and video's "a" is another item than shop's.
    ids, events = model.id_rows(catalogue(("shop", "aa"), ("shop", "b"), ("video", "a")))
    assert ids.tolist() == [-1, 1, 2]
    assert events.tolist() == [0.0, 1.0, 2.0]


def test_id_rows_keep_the_order_of_a_long_catalogue(model: Model) -> None:
    names = [f"new-{number}" for number in range(500)]
    ids, _ = model.id_rows(catalogue(*(("shop", name) for name in [*names, "b", *names, "a"])))
    assert np.flatnonzero(ids >= 0).tolist() == [500, 1001]
    assert ids[[500, 1001]].tolist() == [1, 0]


def test_id_rows_of_an_empty_catalogue_are_tensors_too(model: Model) -> None:
    ids, events = model.id_rows(CATALOGUE.empty_table())
    assert (torch.from_numpy(ids).dtype, torch.from_numpy(events).dtype) == (
        torch.int64,
        torch.float32,
    )


def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()


def test_optimizer_continues_from_its_bytes() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    steps(weight, optimizer, 3)
    copy = torch.nn.Parameter(weight.detach().clone())
    restored, fresh = torch.optim.AdamW([copy], lr=0.5), torch.optim.AdamW([copy], lr=0.5)
    restored.load_state_dict(state_from_bytes(state_to_bytes(optimizer.state_dict())))
    assert fresh.state_dict()["state"] == {}
    steps(weight, optimizer, 2)
    steps(copy, restored, 2)
    assert torch.equal(weight, copy)


class Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("it was unpickled",)


def test_state_from_bytes_unpickles_no_objects() -> None:
    sink = io.BytesIO()
    torch.save({"state": Trap()}, sink)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        state_from_bytes(sink.getvalue())


def test_load_model_refuses_another_format(
    tmp_path: Path, model: Model, backbone: TextBackbone
) -> None:
    store = Store(str(tmp_path))
    config = save_model(store, FOLDER, model, backbone)
    store.write_json(f"{FOLDER}/config.json", config | {"format": 1})
    with pytest.raises(CrossrecError, match="expected format 5, found format 1; fine-tune again"):
        load_model(store, FOLDER)
