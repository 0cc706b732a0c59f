import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crossrec.errors import ConfigError
from crossrec.model.backbone import encode_texts, load_backbone
from crossrec.model.pooling import pool, sentence_pooling

HIDDEN = torch.arange(12.0).reshape(2, 3, 2)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])
TEXTS = ["deep space", "chess", "a primer of chess for two players", ""]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mean", [[2.0, 3.0], [7.0, 8.0]]),
        ("cls", [[0.0, 1.0], [6.0, 7.0]]),
        ("last", [[4.0, 5.0], [8.0, 9.0]]),
    ],
)
def test_pool_takes_what_its_kind_says(kind: str, expected: list[list[float]]) -> None:
    assert pool(HIDDEN, MASK, kind).tolist() == expected


def copied(backbone: str, folder: Path, **modes: bool) -> str:
    """A backbone with what sentence-transformers says of its pooling."""
    shutil.copytree(backbone, folder)
    (folder / "1_Pooling").mkdir()
    said = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    return str(folder)


def test_auto_is_what_sentence_transformers_says(tiny_backbone: str, tmp_path: Path) -> None:
    folder = copied(tiny_backbone, tmp_path / "b", cls_token=True, mean_tokens=False)
    assert load_backbone(folder, 16).pooling == "cls"
    assert load_backbone(tiny_backbone, 16).pooling == "mean"
    assert load_backbone(folder, 16, pooling="mean").pooling == "mean"


def test_a_pooling_that_is_not_known_is_told_of(tiny_backbone: str, tmp_path: Path) -> None:
    folder = copied(tiny_backbone, tmp_path / "b", max_tokens=True)
    with pytest.raises(ConfigError, match=r"expected one known pooling, found pooling_mode_max"):
        sentence_pooling(Path(folder))


def saved(folder: Path, tokenizer: str, model: Any) -> str:
    """A model of random weights beside a tokenizer that exists."""
    model.save_pretrained(folder)
    for path in Path(tokenizer).glob("*token*"):
        shutil.copy(path, folder)
    return str(folder)


def make_gpt2() -> Any:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=2))


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def make_qwen() -> Any:
    from transformers import Qwen2Config, Qwen2Model

    return Qwen2Model(Qwen2Config(num_key_value_heads=1, **SIZES))


def make_roberta() -> Any:
    from transformers import RobertaConfig, RobertaModel

    return RobertaModel(RobertaConfig(**SIZES))


def alone(backbone: Any, text: str) -> Tensor:
    """The last hidden states of one text without padding, (T, W)."""
    tokens = backbone.tokenize([text])
    hidden: Tensor = backbone.model(**tokens).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize(
    ("make", "kind"), [(make_gpt2, "last"), (make_qwen, "last"), (make_roberta, "mean")]
)
def test_architectures_are_pooled_as_they_read(
    make: Any, kind: str, tiny_backbone: str, tmp_path: Path
) -> None:
    backbone = load_backbone(saved(tmp_path / "b", tiny_backbone, make().eval()), 16)
    assert (backbone.pooling, backbone.width) == (kind, 32)
    vectors = encode_texts(backbone, TEXTS)
    assert not vectors[3].any()
    with torch.inference_mode():
        for text, vector in zip(TEXTS[:3], vectors, strict=False):
            hidden = alone(backbone, text)
            pooled = hidden[-1] if kind == "last" else hidden.mean(0)
            expected = torch.nn.functional.normalize(pooled, dim=0).numpy()
            np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_an_encoder_with_a_decoder_is_refused(tiny_backbone: str, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    folder = saved(tmp_path / "b", tiny_backbone, T5Model(config))
    with pytest.raises(ConfigError, match=r"model.backbone: expected an encoder or a decoder"):
        load_backbone(folder, 16)


def test_a_tokenizer_without_padding_pads_with_the_end_of_texts(
    tiny_backbone: str, tmp_path: Path
) -> None:
    folder = Path(saved(tmp_path / "b", tiny_backbone, make_gpt2()))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["pad_token"], settings["eos_token"] = None, "[SEP]"
    path.write_text(json.dumps(settings))
    backbone = load_backbone(str(folder), 16)
    assert backbone.tokenizer.pad_token == "[SEP]"
    assert np.isfinite(encode_texts(backbone, TEXTS)).all()
