import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from crossrec.errors import ConfigError
from crossrec.model.adapt import (
    IGNORED,
    TEMPERATURE,
    LanguageLoss,
    PairLoss,
    contrastive_loss,
    hide_tokens,
    language_kind,
)
from crossrec.model.backbone import load_backbone
from tests.group import with_group

TEXTS = ["deep space", "chess", "a primer of chess for two players"]


def gradients(loss: nn.Module) -> dict[str, Tensor]:
    return {name: part.grad for name, part in loss.named_parameters() if part.grad is not None}


def gpt2(folder: Path, tokenizer: str) -> str:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(vocab_size=100, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2Model(config).save_pretrained(folder)
    for path in Path(tokenizer).glob("*token*"):
        shutil.copy(path, folder)
    return str(folder)


def test_chosen_tokens_are_mostly_masked_sometimes_random_or_left() -> None:
    torch.manual_seed(17)
    ids = torch.full((200, 200), 7)
    may_hide = torch.ones_like(ids, dtype=torch.bool)
    may_hide[:, 0] = False
    shown, labels = hide_tokens(ids, may_hide, mask_id=3, vocabulary=1_000)
    chosen = labels != IGNORED
    assert (labels[chosen] == 7).all()
    assert not chosen[:, 0].any()
    assert (shown[~chosen] == 7).all()
    shares = [chosen[:, 1:].float().mean(), *((shown[chosen] == n).float().mean() for n in (3, 7))]
    assert [float(share) for share in shares] == pytest.approx([0.15, 0.8, 0.1], abs=0.02)


def test_contrastive_loss_is_that_of_its_equation() -> None:
    one, other = (math.exp(cosine / TEMPERATURE) for cosine in (0.6, 0.8))
    first = torch.tensor([[1.0, 0.0]])
    seconds = torch.tensor([[0.6, 0.8], [0.8, 0.6]])
    found = contrastive_loss(first, seconds, torch.tensor([4]), torch.tensor([4, 5]))
    assert found.item() == pytest.approx(-math.log(one / (one + other)), rel=1e-5)


@pytest.mark.parametrize(
    ("second", "candidates"),
    [(7, (3, 3, 3)), (0, (2, 3, 3)), (1, (2, 2, 3))],
    ids=["another text", "the first of pair 0", "the partner of pair 0"],
)
def test_a_text_of_the_pair_is_no_negative_of_it(second: int, candidates: tuple[int, ...]) -> None:
    """Where all vectors are alike, a pair's loss is the log of how many candidates it has."""
    alike, firsts, seconds = torch.ones(3, 1), torch.tensor([0, 5, 6]), torch.tensor([1, second, 8])
    found = contrastive_loss(alike, alike, firsts, seconds)
    assert found.item() == pytest.approx(sum(map(math.log, candidates)), rel=1e-5)


def test_masked_words_teach_the_backbone_through_a_tied_head(tiny_backbone: str) -> None:
    torch.manual_seed(17)
    backbone = load_backbone(tiny_backbone, 16)
    loss = LanguageLoss(backbone, tiny_backbone, False)
    head = loss.model.get_output_embeddings().weight
    assert head is backbone.model.get_input_embeddings().weight
    assert loss.model.base_model is backbone.model
    summed, count = loss(**backbone.tokenize(TEXTS))
    summed.backward()
    assert summed.item() / count == pytest.approx(math.log(len(backbone.tokenizer)), rel=0.2)
    learn = {name for name, part in backbone.model.named_parameters() if part.grad is not None}
    assert {name.split(".")[0] for name in learn} == {"embeddings", "encoder"}


def test_a_decoder_learns_each_next_word_of_the_text_alone(
    tiny_backbone: str, tmp_path: Path
) -> None:
    backbone = load_backbone(gpt2(tmp_path / "gpt2", tiny_backbone), 16)
    loss = LanguageLoss(backbone, str(tmp_path / "gpt2"), False).eval()
    tokens = backbone.tokenize(TEXTS)
    summed, count = loss(**tokens)
    assert count == int(tokens["attention_mask"].sum()) - len(TEXTS)
    alone = [loss(**backbone.tokenize([text]))[0] for text in TEXTS]
    assert summed.item() == pytest.approx(sum(part.item() for part in alone), rel=1e-4)


def test_a_backbone_without_language_is_told_of() -> None:
    from transformers import ResNetConfig

    with pytest.raises(ConfigError, match=r"train\.adapt mlm: expected a backbone that has a lang"):
        language_kind(ResNetConfig())


def pair_loss(weights: str) -> PairLoss:
    return PairLoss(load_backbone(weights, 16))


def pairs(loss: PairLoss, first: list[int], second: list[int]) -> Any:
    tokens = loss.backbone.tokenize([TEXTS[place] for place in (*first, *second)])
    return tokens, torch.tensor(first)


def test_two_dropouts_of_one_text_differ_and_teach_all_of_the_backbone(tiny_backbone: str) -> None:
    torch.manual_seed(17)
    loss = pair_loss(tiny_backbone).train()
    tokens, first = pairs(loss, [0, 1, 2], [0, 1, 2])
    one, other = loss.backbone(**tokens).chunk(2)
    assert not one.equal(other)
    summed, count = loss(tokens, first, first)
    summed.backward()
    assert count == 3
    assert {name.split(".")[2] for name in gradients(loss)} == {"embeddings", "encoder"}


def work(rank: int, folder: str, weights: str) -> None:
    with_group(rank, folder, lambda: learn(rank, folder, weights))


def learn(rank: int, folder: str, weights: str) -> None:
    loss = pair_loss(weights)
    parallel = nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True)
    summed, _ = parallel(*pairs(loss, [rank], [2 - rank]), torch.tensor([2, 1]))
    (summed * 2 / 2).backward()
    if not rank:
        save_file(gradients(loss), f"{folder}/found")


@pytest.mark.slow
def test_two_workers_have_the_gradients_of_one(tmp_path: Path, tiny_backbone: str) -> None:
    spawn(work, (str(tmp_path), tiny_backbone), nprocs=2)
    alone = pair_loss(tiny_backbone)
    summed, _ = alone(*pairs(alone, [0, 1], [2, 1]), torch.tensor([2, 1]))
    (summed / 2).backward()
    found, expected = load_file(tmp_path / "found"), gradients(alone)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)
