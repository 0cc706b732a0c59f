import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from crossrec.errors import ConfigError
from crossrec.model import backbone as backbone_module
from crossrec.model.backbone import (
    TextBackbone,
    encode_texts,
    load_backbone,
    weights_digest,
)

TEXTS = ["deep space photographs", "", "chess", "a primer of chess for two players", "b", "chess"]


@pytest.fixture
def backbone(tiny_backbone: str) -> TextBackbone:
    return load_backbone(tiny_backbone, max_tokens=16)


def test_encode_texts_returns_unit_vectors_and_zero_for_no_text(backbone: TextBackbone) -> None:
    vectors = encode_texts(backbone, TEXTS)
    assert vectors.shape == (6, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 1, 1, 1, 1], atol=1e-5)


def test_encode_texts_keeps_the_order_of_the_texts(backbone: TextBackbone) -> None:
    order = np.array([3, 0, 5, 1, 4, 2])
    shuffled = encode_texts(backbone, [TEXTS[place] for place in order])
    vectors = encode_texts(backbone, TEXTS)
    np.testing.assert_allclose(shuffled, vectors[order], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.parametrize("tokens_a_batch", [1, 40])
def test_encode_texts_does_not_depend_on_its_batches(
    backbone: TextBackbone, monkeypatch: pytest.MonkeyPatch, tokens_a_batch: int
) -> None:
    vectors = encode_texts(backbone, TEXTS)
    monkeypatch.setattr(backbone_module, "TOKENS_A_BATCH", tokens_a_batch)
    np.testing.assert_allclose(encode_texts(backbone, TEXTS), vectors, atol=1e-5)


def test_encode_texts_reads_max_tokens(tiny_backbone: str) -> None:
    # 6 tokens are [CLS], four letters and [SEP].
    short = load_backbone(tiny_backbone, max_tokens=6)
    one, other, different = encode_texts(short, ["abcdefgh", "abcdxyz", "abcxefgh"])
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert np.abs(one - different).max() > 1e-4


def test_encode_texts_of_nothing_is_empty(backbone: TextBackbone) -> None:
    assert encode_texts(backbone, []).shape == (0, 32)


def test_encode_texts_leaves_training_mode_as_it_was(backbone: TextBackbone) -> None:
    backbone.train()
    one, other = encode_texts(backbone, TEXTS), encode_texts(backbone, TEXTS)
    assert backbone.training
    # Dropout would tell the two apart.
    assert np.array_equal(one, other)


def test_weights_digest_changes_with_one_weight(backbone: TextBackbone, tiny_backbone: str) -> None:
    before = weights_digest(backbone)
    assert before == weights_digest(load_backbone(tiny_backbone, max_tokens=16))
    with torch.no_grad():
        next(backbone.parameters())[3, 4] += 1e-3
    assert weights_digest(backbone) != before


def test_weights_digest_changes_with_max_tokens(backbone: TextBackbone, tiny_backbone: str) -> None:
    assert weights_digest(backbone) != weights_digest(load_backbone(tiny_backbone, max_tokens=17))


def test_weights_digest_handles_a_weight_without_dimensions(backbone: TextBackbone) -> None:
    before = weights_digest(backbone)
    backbone.model.register_parameter("scale", torch.nn.Parameter(torch.tensor(1.0)))
    assert weights_digest(backbone) != before


def test_load_backbone_refuses_pickled_weights(
    backbone: TextBackbone, tiny_backbone: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_backbone, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(backbone.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"model.backbone .*model.safetensors"):
        load_backbone(str(folder), max_tokens=16)


def test_load_backbone_tells_of_a_folder_without_tokenizer(
    tiny_backbone: str, tmp_path: Path
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(tiny_backbone, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(ConfigError, match=r"model.backbone .* a tokenizer"):
        load_backbone(str(folder), max_tokens=16)
