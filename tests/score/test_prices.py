"""Prices at which items are shown alike, on users whose taste is mostly the same."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from crossrec.data.histories import DomainRange
from crossrec.evaluate.exposure import gini
from crossrec.score.limits import Terms
from crossrec.score.prices import PLACES, find_prices

USERS, ITEMS = 400, 80
DOMAIN = DomainRange("film", 0, ITEMS, 0)


def draw(left_out: Tensor | None = None) -> list[Terms]:
    """Two batches: a taste of one's own, and twice as much that all have in common."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        own, popular = torch.randn(USERS, ITEMS), 2 * torch.randn(ITEMS, 1)
    seen = torch.tensor([[0, 3], [2, 7]])
    more = () if left_out is None else (lambda start, stop: left_out[None, start:stop],)
    eye = torch.eye(ITEMS)
    parts = own.split(USERS // 2)
    return [Terms([(p, eye), (torch.ones(len(p), 1), popular)], [], seen, more) for p in parts]


def shown(terms: list[Terms], prices: Tensor) -> np.ndarray:
    counts = torch.zeros(ITEMS, dtype=torch.int64)
    for part in terms:
        tastes, (ones, popular) = part.products
        assert isinstance(popular, Tensor)
        priced = replace(part, products=[tastes, (ones, popular - prices[:, None])])
        rows = priced.top_k(PLACES)[0]
        counts += torch.bincount(rows[rows >= 0], minlength=ITEMS)
    return counts.numpy()


def test_at_full_price_all_items_are_shown_alike_and_in_between_more_evenly() -> None:
    terms = draw()
    prices = find_prices(terms, DOMAIN)
    assert float(prices.min()) == 0
    uneven = [gini(shown(terms, dial * prices)) for dial in (0, 0.25, 0.5, 0.75, 1)]
    assert uneven[0] > 0.7
    assert uneven[-1] < 0.05
    assert uneven == sorted(uneven, reverse=True)
    assert shown(terms, prices).min() > 0


def test_prices_hold_for_users_of_whom_they_know_nothing() -> None:
    """Half of the users make the prices, the other half see the lists."""
    first, second = draw()
    assert (
        gini(shown([second], find_prices([first], DOMAIN)))
        < 0.3
        < gini(shown([second], torch.zeros(ITEMS)))
    )


def test_prices_are_the_same_again() -> None:
    assert torch.equal(find_prices(draw(), DOMAIN), find_prices(draw(), DOMAIN))


def test_what_no_list_may_hold_pays_nothing_and_weighs_nothing() -> None:
    refused = torch.arange(ITEMS) % 2 == 0
    terms = draw(refused)
    prices = find_prices(terms, DOMAIN)
    assert (prices[refused] == 0).all()
    counts = shown(terms, prices)
    assert counts[refused].sum() == 0
    assert gini(counts[~refused]) < 0.05


@pytest.mark.parametrize("items", [0, 1, 5])
def test_prices_of_small_domains(items: int) -> None:
    """Where all items fit into every list nobody is shown more often."""
    queries, columns = torch.randn(6, 3), torch.randn(items, 3)
    terms = [Terms([(queries, columns)], [], torch.zeros(0, 2, dtype=torch.int64))]
    domain = DomainRange("small", 0, items, 0)
    assert find_prices(terms, domain).tolist() == [0] * items
    assert find_prices([], domain).tolist() == [0] * items
