"""The card of a published model, and that its folder needs no Ray."""

import re
import subprocess
import sys

import pytest
import yaml

from crossrec.model.integrity import check_model
from tests.nights import DOMAINS, Night

WITHOUT_RAY = "import sys\nsys.modules['ray'] = None  # any import of it fails\n"

USE = """
import numpy as np
import torch
from crossrec.model.backbone import encode_texts

vectors = encode_texts(backbone, ["chess", "deep space"])
with torch.inference_mode():
    tokens = tokenizer(["chess"], return_tensors="pt")
    hidden = plain(**tokens).last_hidden_state
    learned = model.recommender.item_vectors(
        torch.from_numpy(vectors), torch.tensor([-1, -1]), torch.zeros(2)
    )
mean = hidden.mean(1)[0].numpy()
print(float(np.abs(mean / np.linalg.norm(mean) - vectors[0]).max()))
print(tuple(learned.shape), bool(torch.isfinite(learned).all()), sorted(fusions)[0])
"""


@pytest.fixture
def card(night: Night) -> str:
    return night.store.read_bytes(f"{night.manifest['model']}/README.md").decode()


def test_card_says_what_the_model_was_trained_on(night: Night, card: str) -> None:
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == night.config.model.backbone
    assert f"run `{night.config.run_id}`" in card
    for domain in DOMAINS:
        items = night.items.filter(
            [name == domain for name in night.items["domain"].to_pylist()]
        ).num_rows
        assert f"| {domain} | {items:,} |" in card
    summary = night.store.read_json(f"{night.manifest['prepared']}/summary.json")
    assert f"{summary['events']:,} events of {summary['users']:,} users" in card
    assert re.search(r"torch \d+\.\d+", card)


def test_card_has_the_measure_of_the_chosen_epoch(night: Night, card: str) -> None:
    training = night.read_json("finetune.json")["training"]
    best = training["curve"][training["best_epoch"]]
    assert f"ndcg@10 {best['ndcg@10']:.4f}" in card


def test_card_has_the_settings_and_no_option_of_the_store(night: Night, card: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)
    settings = yaml.safe_load(block)
    assert set(settings) == {"seed", "model", "train"}
    assert settings["train"]["batch_size"] == night.config.train.batch_size


def test_model_loads_as_its_card_says_in_a_process_without_ray(night: Night, card: str) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY + block + USE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    difference, learned = done.stdout.splitlines()
    assert float(difference) < 1e-4
    assert learned == f"(2, {night.config.model.width}) True model"


def test_manifest_carries_the_checksum_of_the_model(night: Night) -> None:
    assert night.manifest["model_sha256"] == check_model(night.store, night.manifest["model"])
