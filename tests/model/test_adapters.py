from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.errors import ConfigError
from crossrec.model.adapters import (
    adapter_penalty,
    check_trainable,
    depths,
    find_layers,
    merged,
    put_bottlenecks,
    schedule_adapter,
    select_trainable,
    step_adapter,
    take_bottlenecks,
)
from crossrec.model.backbone import TextBackbone, encode_texts, load_backbone

TEXTS = ["deep space photographs", "chess", "a primer of chess for two players"]
Adapter = Literal["lora", "adalora", "bottleneck"]
ADAPTERS: tuple[Adapter, ...] = ("lora", "adalora", "bottleneck")


@pytest.fixture
def backbone(tiny_backbone: str) -> TextBackbone:
    return load_backbone(tiny_backbone, max_tokens=16)


def settings(**keys: Any) -> ModelConfig:
    return ModelConfig.model_validate({"top_layers": 1, "adapter_rank": 4, **keys})


def learning(backbone: TextBackbone) -> set[str]:
    return {name for name, part in backbone.model.named_parameters() if part.requires_grad}


def train(backbone: TextBackbone, chosen: list[torch.nn.Parameter], steps: int = 3) -> None:
    """Push the vectors of TEXTS towards a fixed direction."""
    optimizer = torch.optim.AdamW(chosen, lr=0.05)
    goal = torch.linspace(-1, 1, backbone.width)
    schedule_adapter(backbone, steps)
    for step in range(steps):
        loss = -(backbone(**backbone.tokenize(TEXTS)) @ goal).sum()
        penalty = adapter_penalty(backbone)
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        step_adapter(backbone, step)
        optimizer.zero_grad()


def test_layers_of_a_model_in_stages_are_the_stages() -> None:
    """Not the blocks of the deepest stage, of which there are more."""
    from transformers import ConvNextConfig, ConvNextModel

    sizes: dict[str, Any] = {"hidden_sizes": [4, 4, 4], "depths": [1, 5, 1], "num_stages": 3}
    model: Any = ConvNextModel(ConvNextConfig(**sizes))
    assert find_layers(model) == list(model.encoder.stages)


def test_head_freezes_the_backbone(backbone: TextBackbone) -> None:
    assert select_trainable(backbone, settings()) == []
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_top_learns_the_last_layers_alone(backbone: TextBackbone) -> None:
    chosen = select_trainable(backbone, settings(trainable="top"))
    expected = {
        name for name, _ in backbone.model.named_parameters() if name.startswith("encoder.layer.1.")
    }
    assert expected
    assert learning(backbone) == expected
    assert len(chosen) == len(expected)


def test_all_learns_everything_but_the_pooler(backbone: TextBackbone) -> None:
    chosen = select_trainable(backbone, settings(trainable="all"))
    every = {name for name, _ in backbone.model.named_parameters()}
    pooler = {name for name in every if name.startswith("pooler.")}
    assert pooler
    assert learning(backbone) == every - pooler
    backbone(**backbone.tokenize(TEXTS)).sum().backward()
    assert all(parameter.grad is not None for parameter in chosen)


def test_a_stack_that_is_not_as_deep_is_told_of(backbone: TextBackbone) -> None:
    with pytest.raises(ConfigError, match=r"model.top_layers: .*found 2 layers in BertModel"):
        select_trainable(backbone, settings(trainable="top", top_layers=3))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_starts_as_the_backbone_was(backbone: TextBackbone, adapter: Adapter) -> None:
    before = encode_texts(backbone, TEXTS)
    select_trainable(backbone, settings(adapter=adapter))
    np.testing.assert_allclose(encode_texts(backbone, TEXTS), before, atol=1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_learns_and_the_weights_beside_it_do_not(
    backbone: TextBackbone, adapter: Adapter
) -> None:
    vectors = encode_texts(backbone, TEXTS)
    own = {name: part.clone() for name, part in backbone.model.state_dict().items()}
    chosen = select_trainable(backbone, settings(adapter=adapter))
    assert 0 < sum(part.numel() for part in chosen) < sum(map(torch.numel, own.values())) / 2
    train(backbone, chosen)
    assert np.abs(encode_texts(backbone, TEXTS) - vectors).max() > 0.01
    frozen = [
        part
        for name, part in backbone.model.named_parameters()
        if not part.requires_grad and "ranknum" not in name  # a count that AdaLoRA keeps
    ]
    assert len(frozen) == len(own)
    assert all(any(part.equal(was) for was in own.values()) for part in frozen)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(("trainable", "layers"), [("head", {0, 1}), ("top", {1})])
def test_an_adapter_is_put_into_the_layers_that_are_named(
    backbone: TextBackbone, adapter: Adapter, trainable: str, layers: set[int]
) -> None:
    select_trainable(backbone, settings(adapter=adapter, trainable=trainable))
    found = {int(name.split("layer.")[1].split(".")[0]) for name in learning(backbone)}
    assert found == layers


@pytest.mark.parametrize("adapter", ["lora", "adalora"])
def test_lora_is_merged_into_plain_weights(backbone: TextBackbone, adapter: Adapter) -> None:
    names = set(backbone.model.state_dict())
    train(backbone, select_trainable(backbone, settings(adapter=adapter)))
    plain = merged(backbone)
    assert set(plain.model.state_dict()) == names
    found, expected = (encode_texts(each, TEXTS) for each in (plain, backbone))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_bottlenecks_are_taken_out_and_put_back(backbone: TextBackbone) -> None:
    names, before = set(backbone.model.state_dict()), encode_texts(backbone, TEXTS)
    train(backbone, select_trainable(backbone, settings(adapter="bottleneck")))
    adapted = encode_texts(backbone, TEXTS)
    copied = merged(backbone)
    tensors = take_bottlenecks(copied.model)
    assert set(copied.model.state_dict()) == names
    np.testing.assert_allclose(encode_texts(copied, TEXTS), before, atol=1e-6)
    put_bottlenecks(copied.model, tensors)
    np.testing.assert_allclose(encode_texts(copied, TEXTS), adapted, atol=1e-6)


def test_adalora_prunes_to_its_rank(backbone: TextBackbone) -> None:
    chosen = select_trainable(backbone, settings(adapter="adalora"))
    train(backbone, chosen, steps=40)
    parts = [p for name, p in backbone.model.named_parameters() if "lora_E" in name]
    left = sum(int((part != 0).sum()) for part in parts)
    assert {len(part) for part in parts} == {6}
    assert left == 4 * len(parts)


def test_adapter_targets_that_do_not_exist_are_told_of(backbone: TextBackbone) -> None:
    keys = {"adapter": "lora", "adapter_targets": ["query", "q_proj"]}
    with pytest.raises(ConfigError, match=r"\(dense, key, query, value\), found q_proj"):
        select_trainable(backbone, settings(**keys))


def test_wrong_settings_are_told_of_without_loading_weights(tiny_backbone: str) -> None:
    check_trainable(tiny_backbone, settings(adapter="adalora", trainable="top"))
    with pytest.raises(ConfigError, match=r"model.adapter_targets: .*found q_proj"):
        check_trainable(tiny_backbone, settings(adapter="lora", adapter_targets=["q_proj"]))
    with pytest.raises(ConfigError, match=r"model.top_layers: .*found 2 layers"):
        check_trainable(tiny_backbone, settings(trainable="top", top_layers=3))


def test_adapter_targets_alone_get_lora(backbone: TextBackbone) -> None:
    select_trainable(backbone, settings(adapter="lora", adapter_targets=["value"]))
    assert all(".value.lora_" in name for name in learning(backbone))


def test_depth_counts_from_the_top(backbone: TextBackbone) -> None:
    found = depths(backbone.model)
    by_name = {name: found[part] for name, part in backbone.model.named_parameters()}
    assert by_name["embeddings.word_embeddings.weight"] == 2
    assert by_name["encoder.layer.0.output.dense.weight"] == 1
    assert by_name["encoder.layer.1.output.dense.weight"] == 0
    assert by_name["pooler.dense.weight"] == 0


def test_layers_of_gpt2_are_found_and_adapted(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    model: Any = GPT2Model(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )
    backbone = TextBackbone(model, None, 16)  # type: ignore[arg-type]
    names = {name: depths(model)[part] for name, part in model.named_parameters()}
    assert (names["wte.weight"], names["h.1.mlp.c_fc.weight"], names["ln_f.weight"]) == (2, 0, 0)
    select_trainable(backbone, settings(adapter="lora", trainable="top"))
    assert learning(backbone)
    assert all(".h.1." in name for name in learning(backbone))
