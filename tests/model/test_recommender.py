import dataclasses

import pytest
import torch
from torch import Tensor

from crossrec.config import ModelConfig
from crossrec.model.recommender import (
    GAP_DAYS,
    HistoryBatch,
    Recommender,
    gap_bucket,
    recent_mean,
)

SETTINGS = ModelConfig(width=16, layers=2, heads=2, max_history=8, id_dropout=0.5)
TEXT_WIDTH, ITEMS, DOMAINS = 24, 10, 2


@pytest.fixture
def recommender() -> Recommender:
    """All weights random, as after training."""
    torch.manual_seed(17)
    made = Recommender(SETTINGS, TEXT_WIDTH, ITEMS, DOMAINS)
    with torch.no_grad():
        made.projection.normal_()
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def batch_of(rows: Tensor, days: Tensor) -> HistoryBatch:
    """Rows below 5 are of domain 0, those from 5 of domain 1."""
    domains = torch.where(rows < 0, DOMAINS, rows // 5)
    return HistoryBatch(rows, domains, days.int())


ROWS = torch.tensor([[-1, 3, 7, 1, 9], [-1, 2, 2, 8, 0]])
DAYS = torch.tensor([[1, 1, 4, 4, 9], [2, 2, 3, 50, 51]])


def hidden_states(recommender: Recommender, rows: Tensor, days: Tensor) -> Tensor:
    vectors = torch.randn(ITEMS, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return recommender.encode(vectors[rows.clamp(min=0)], batch_of(rows, days))


@pytest.mark.parametrize("changed", [1, 2, 3, 4])
def test_encode_of_a_position_does_not_depend_on_later_events(
    recommender: Recommender, changed: int
) -> None:
    rows, days = ROWS.clone(), DAYS.clone()
    rows[:, changed] = 5
    days[:, changed:] += 30
    one = hidden_states(recommender, ROWS, DAYS)
    other = hidden_states(recommender, rows, days)
    torch.testing.assert_close(one[:, :changed], other[:, :changed], rtol=0, atol=1e-6)
    assert (one[:, changed:] - other[:, changed:]).abs().amax(-1).min() > 1e-3


def test_encode_of_a_batch_equals_each_history_alone(recommender: Recommender) -> None:
    rows = torch.cat([ROWS, torch.tensor([[-1, 6, -1, -1, -1]])])
    days = torch.cat([DAYS, torch.tensor([[4, 4, 4, 4, 4]])])
    together = hidden_states(recommender, rows, days)
    for user, length in enumerate((5, 5, 2)):
        alone = hidden_states(
            recommender, rows[user : user + 1, :length], days[user : user + 1, :length]
        )
        torch.testing.assert_close(together[user, :length], alone[0], rtol=0, atol=1e-5)


def test_encode_ignores_the_vector_at_positions_without_event(recommender: Recommender) -> None:
    batch = batch_of(torch.tensor([[-1, 4]]), torch.tensor([[1, 1]]))
    vectors = torch.randn(1, 2, 16)
    other = vectors.clone()
    other[:, 0] = 7.0
    assert torch.equal(recommender.encode(vectors, batch), recommender.encode(other, batch))


def test_item_vectors_have_length_1(recommender: Recommender) -> None:
    texts = torch.randn(6, TEXT_WIDTH)
    texts[2] = 0
    vectors = recommender.item_vectors(texts, torch.tensor([0, 1, 2, -1, -1, 9]), torch.rand(6) * 5)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(6))


def test_item_vectors_of_a_new_item_know_no_id(recommender: Recommender) -> None:
    texts, counts = torch.randn(1, TEXT_WIDTH).expand(2, -1), torch.full((2,), 3.0)
    # -1 looks up row 0 of the embedding, which must not shine through.
    with torch.no_grad():
        new, known = recommender.item_vectors(texts, torch.tensor([-1, 0]), counts)
        recommender.id_embedding.weight[0] = 100.0
        new_later, known_later = recommender.item_vectors(texts, torch.tensor([-1, 0]), counts)
    assert torch.equal(new, new_later)
    assert (known - known_later).abs().max() > 0.1


def test_item_vectors_leave_ids_out_at_random_in_training_alone(recommender: Recommender) -> None:
    texts, ids = torch.randn(1, TEXT_WIDTH).expand(200, -1), torch.zeros(200, dtype=torch.int64)
    counts = torch.ones(200)
    with torch.no_grad():
        recommender.id_embedding.weight[0] = torch.randn(16) * 10
        text_alone = recommender.item_vectors(texts[:1], torch.tensor([-1]), counts[:1])
        evaluated = recommender.item_vectors(texts, ids, counts)
        trained = recommender.train().item_vectors(texts, ids, counts)
    is_text = (trained - text_alone).abs().amax(-1) < 1e-5
    is_both = (trained - evaluated[0]).abs().amax(-1) < 1e-5
    assert not ((evaluated - text_alone).abs().amax(-1) < 1e-5).any()
    assert (is_text | is_both).all()
    # 200 draws of probability 0.5: a standard deviation is 7.
    assert 65 < is_text.sum() < 135


def at_step_0(text_IT: Tensor) -> Recommender:
    torch.manual_seed(18)
    made = Recommender(SETTINGS, TEXT_WIDTH, ITEMS, DOMAINS).eval()
    made.start_from(text_IT)
    return made


def test_start_from_makes_item_vectors_the_projected_text() -> None:
    texts = torch.nn.functional.normalize(torch.randn(ITEMS, TEXT_WIDTH), dim=-1)
    made = at_step_0(texts)
    vectors = made.item_vectors(texts, torch.arange(ITEMS), torch.rand(ITEMS))
    torch.testing.assert_close(vectors, made.text_vectors(texts))


def test_start_from_keeps_cosines_of_texts_that_fit_its_width() -> None:
    # Ten texts span ten directions, fewer than the width of 16.
    texts = torch.nn.functional.normalize(torch.randn(ITEMS, TEXT_WIDTH), dim=-1)
    vectors = at_step_0(texts).text_vectors(texts)
    torch.testing.assert_close(vectors @ vectors.T, texts @ texts.T, rtol=0, atol=1e-5)


def test_start_from_handles_texts_narrower_than_the_model() -> None:
    texts = torch.nn.functional.normalize(torch.randn(ITEMS, 5), dim=-1)
    made = Recommender(SETTINGS, 5, ITEMS, DOMAINS).eval()
    made.start_from(texts)
    vectors = made.text_vectors(texts)
    torch.testing.assert_close(vectors @ vectors.T, texts @ texts.T, rtol=0, atol=1e-5)


def test_queries_at_step_0_are_the_profile() -> None:
    made = at_step_0(torch.randn(ITEMS, TEXT_WIDTH))
    profile = torch.nn.functional.normalize(torch.randn(3, 16), dim=-1)
    queries = made.queries(
        torch.randn(3, 16), profile, torch.tensor([0, 1, 0]), torch.tensor([0, 3, 90])
    )
    torch.testing.assert_close(queries, profile)


def test_queries_after_training_depend_on_domain_and_elapsed_days(recommender: Recommender) -> None:
    hidden, profile = torch.randn(1, 16).expand(3, -1), torch.zeros(3, 16)
    queries = recommender.queries(
        hidden, profile, torch.tensor([0, 1, 0]), torch.tensor([1, 1, 100])
    )
    assert (queries[0] - queries[1]).abs().max() > 1e-3
    assert (queries[0] - queries[2]).abs().max() > 1e-3
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(3))


def test_text_vectors_of_no_text_are_zero(recommender: Recommender) -> None:
    assert recommender.text_vectors(torch.zeros(1, TEXT_WIDTH)).abs().sum() == 0


def test_recent_mean_weighs_the_newer_event_more() -> None:
    vectors = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0]]])
    known = torch.tensor([[False, True, True]])
    found = recent_mean(vectors, known)[0]
    length = (0.9**2 + 1) ** 0.5
    torch.testing.assert_close(
        found, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.9 / length, 1 / length]])
    )


def test_recent_mean_forgets_the_21st_event() -> None:
    vectors = torch.zeros(1, 22, 2)
    vectors[0, 1, 0] = vectors[0, 2:, 1] = 1.0
    known = torch.arange(22)[None] > 0
    found = recent_mean(vectors, known)[0]
    assert found[20, 0] > 0
    assert found[21].tolist() == [0.0, 1.0]


def test_gap_bucket_tells_days_apart_up_to_its_bounds() -> None:
    days = torch.tensor([0, 1, 2, 3, 4, 5, 512, 513])
    assert gap_bucket(days).tolist() == [0, 0, 1, 2, 2, 3, 9, len(GAP_DAYS)]


def test_history_batch_moves_as_a_whole() -> None:
    ratings = torch.ones(ROWS.shape)
    moved = dataclasses.replace(batch_of(ROWS, DAYS), ratings_BL=ratings).to(torch.device("meta"))
    assert {getattr(moved, field.name).device.type for field in dataclasses.fields(moved)} == {
        "meta"
    }


def test_left_out_texts_and_ids_do_not_reach_the_vectors() -> None:
    text, ids, counts = torch.randn(3, TEXT_WIDTH), torch.tensor([0, 1, -1]), torch.zeros(3)
    for kind, other in (
        ("text", (torch.randn(3, TEXT_WIDTH), ids, counts)),
        ("ids", (text, torch.tensor([4, 5, 6]), counts)),
    ):
        settings = SETTINGS.model_copy(update={"leave_out": (kind,)})
        made = Recommender(settings, TEXT_WIDTH, ITEMS, DOMAINS).eval()
        torch.nn.init.normal_(made.id_embedding.weight)
        torch.nn.init.normal_(made.projection)
        assert torch.equal(made.item_vectors(text, ids, counts), made.item_vectors(*other))
        is_seen = bool(made.text_vectors(text).any())
        assert is_seen == (kind == "ids")


def test_query_of_no_event_has_a_gradient_of_ordinary_size_at_step_0() -> None:
    recommender = Recommender(ModelConfig(width=16, layers=1, heads=2, max_history=8), 12, 5, 2)
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    queries = recommender.queries(
        hidden, torch.zeros(3, 16), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2])
    )
    queries.sum().backward()
    gradient = dict(recommender.query.named_parameters())["2.weight"].grad
    assert gradient is not None
    assert 0 < gradient.norm() < 1_000
