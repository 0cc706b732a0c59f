import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.model import newest
from crossrec.model.newest import encode_newest
from crossrec.model.recommender import HistoryBatch, Recommender

LENGTHS = torch.tensor([3, 0, 6, 1, 6, 2])


def made(layers: int, with_ratings: bool = False) -> Recommender:
    torch.manual_seed(17)
    settings = ModelConfig(width=16, layers=layers, heads=2, max_history=6)
    recommender = Recommender(settings, 12, items=9, domains=2, with_ratings=with_ratings)
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return recommender.eval()


def batch_of(with_ratings: bool = False) -> HistoryBatch:
    positions = torch.arange(7)
    known = (positions >= 1) & (positions <= LENGTHS.unsqueeze(1))
    rows = torch.where(known, torch.randint(9, known.shape), -1)
    domains = torch.where(known, rows % 2, 2)
    days = torch.randint(5, known.shape).cumsum(1)
    ratings = torch.where(known, torch.rand(known.shape), torch.nan) if with_ratings else None
    return HistoryBatch(rows, domains, days, ratings)


@pytest.mark.parametrize("users_a_pass", [1, 4, 64])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("with_ratings", [False, True])
@torch.inference_mode()
def test_encode_newest_is_encode_at_the_newest_event(
    monkeypatch: pytest.MonkeyPatch, users_a_pass: int, layers: int, with_ratings: bool
) -> None:
    monkeypatch.setattr(newest, "USERS_A_PASS", users_a_pass)
    recommender = made(layers, with_ratings)
    batch, vectors = batch_of(with_ratings), torch.randn(9, 16)
    hidden = recommender.encode(vectors[batch.rows_BL.clamp(min=0)], batch)
    expected = hidden[torch.arange(len(LENGTHS)), LENGTHS]
    found = encode_newest(recommender, vectors, batch, LENGTHS)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@torch.inference_mode()
def test_encode_newest_of_nobody_is_empty() -> None:
    nobody = torch.zeros(0, 1, dtype=torch.int64)
    found = encode_newest(
        made(2), torch.randn(9, 16), HistoryBatch(nobody, nobody, nobody), torch.zeros(0).long()
    )
    assert found.shape == (0, 16)
