"""Item-kNN and ALS on histories whose answer is known."""

from math import sqrt

import numpy as np
import pytest

from crossrec.data.histories import DomainRange
from crossrec.evaluate import collaborative
from crossrec.evaluate.collaborative import Fit, Learned, fit_als, fit_item_knn, learn, serve
from crossrec.score.lists import Lists
from tests.small import histories, random_users

A, B, C, D = range(4)
FILM, SHOP = DomainRange("film", 0, 4, 0), DomainRange("shop", 4, 9, 0)

BOTH = pytest.mark.parametrize("fit", [fit_item_knn, fit_als])


def had(*users: list[int]) -> list[list[tuple[int, int]]]:
    """Return users by their items, one a day."""
    return [[(row, day) for day, row in enumerate(rows)] for rows in users]


def learn_from(fit: Fit, domains: list[DomainRange], *users: list[int]) -> Learned:
    return learn(fit, histories(*had(*users)), domains, threads=1, seed=17)


def serve_to(learned: Learned, *users: list[int], k: int = 50) -> dict[str, Lists]:
    return serve(learned, histories(*had(*users)), k)


def items_of(lists: Lists) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in lists.rows.tolist()]


def test_item_knn_adds_up_the_cosines_of_what_the_user_has_had() -> None:
    learned = learn_from(fit_item_knn, [FILM], [A, B], [A, B], [A, C])
    found = serve_to(learned, [A], [B, C])["film"]
    # A has three users, B two of them, C one.
    a_b, a_c = 2 / sqrt(3 * 2), 1 / sqrt(3 * 1)
    assert items_of(found) == [[B, C], [A]]
    assert found.scores[0, :2] == pytest.approx([a_b, a_c])
    assert found.scores[1, 0] == pytest.approx(a_b + a_c)


def test_item_knn_puts_the_lower_row_first_where_scores_are_equal() -> None:
    learned = learn_from(fit_item_knn, [FILM], [A, D], [A, C], [A, B])
    assert items_of(serve_to(learned, [A])["film"]) == [[B, C, D]]
    assert items_of(serve_to(learned, [A], k=2)["film"]) == [[B, C]]


def test_als_finds_the_block_that_a_user_belongs_to() -> None:
    domain = DomainRange("film", 0, 12, 0)
    blocks = range(6), range(6, 12)
    # Every user has had all of a block but one item.
    users = [[row for row in block if row != without] for block in blocks for without in block]
    found = serve_to(learn_from(fit_als, [domain], *users * 5), [0, 1, 2], [9, 10, 11, 8], k=2)
    first, second = items_of(found["film"])
    assert set(first) <= {3, 4, 5}
    assert set(second) == {6, 7}


@BOTH
def test_a_model_of_one_domain_has_nothing_for_users_of_another(fit: Fit) -> None:
    users = [[0, 1, 4, 5], [0, 1, 4, 6], [2, 3, 7, 8]]
    alone = learn_from(fit, [SHOP], *users)
    assert items_of(serve_to(alone, [0], [4])["shop"])[0] == []
    assert items_of(serve_to(alone, [0], [4])["shop"])[1][:2] == [5 - 4, 6 - 4]
    together = serve_to(learn_from(fit, [FILM, SHOP], *users), [0])
    assert items_of(together["shop"])[0][0] == 4 - 4
    assert items_of(together["film"])[0][0] == 1


def test_what_happened_in_other_domains_does_not_change_a_model_of_one() -> None:
    users = [[0, 1, 4, 5], [0, 2, 4, 6], [2, 3, 7, 8]]
    only_films = [[row for row in rows if row < 4] for rows in users]
    for fit in (fit_item_knn, fit_als):
        found = serve_to(learn_from(fit, [FILM], *users), [0, 5], [2])["film"]
        expected = serve_to(learn_from(fit, [FILM], *only_films), [0], [2])["film"]
        assert np.array_equal(found.rows, expected.rows)
        assert np.array_equal(found.scores, expected.scores)


@BOTH
def test_lists_have_no_seen_item_and_none_that_nobody_has_had(fit: Fit) -> None:
    found = random_users(seed=3, users=60, items=9, days=30)
    # Nobody has had row 5; row 7 is had by everybody who is served.
    known = [[(row, day) for row, day in events if row != 5] for events in found]
    learned = learn(fit, histories(*known), [FILM, SHOP], threads=2, seed=17)
    served = [[*events, (7, 31)] for events in known]
    for domain, lists in serve(learned, histories(*served), 50).items():
        start = FILM.start if domain == "film" else SHOP.start
        for events, rows in zip(served, items_of(lists), strict=True):
            shown = {start + row for row in rows}
            assert len(shown) == len(rows)
            assert not shown & {5, *(row for row, _ in events)}
        is_item = lists.rows >= 0
        assert np.isfinite(lists.scores[is_item]).all()
        falls = lists.scores[:, 1:] <= lists.scores[:, :-1]
        assert falls[is_item[:, 1:]].all()


@BOTH
def test_users_get_the_same_lists_alone_and_in_a_batch(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = histories(*random_users(seed=4, users=50, items=9, days=30))
    learned = learn(fit, users, [FILM, SHOP], threads=2, seed=17)
    whole = serve(learned, users, 5)
    monkeypatch.setattr(collaborative, "USERS_A_BATCH", 1)
    for domain, alone in serve(learned, users, 5).items():
        assert np.array_equal(alone.rows >= 0, whole[domain].rows >= 0)
        is_item = alone.rows >= 0
        assert alone.scores[is_item] == pytest.approx(whole[domain].scores[is_item], abs=1e-5)


@BOTH
def test_a_seed_gives_the_same_lists(fit: Fit) -> None:
    users = histories(*random_users(seed=4, users=50, items=9, days=30))
    runs = [serve(learn(fit, users, [FILM], threads=2, seed=17), users, 5) for _ in range(2)]
    assert np.array_equal(runs[0]["film"].rows, runs[1]["film"].rows)
    assert np.array_equal(runs[0]["film"].scores, runs[1]["film"].scores)


@BOTH
def test_only_the_newest_events_count_but_all_are_seen(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = learn_from(fit, [FILM], [A, B], [A, B], [C, D], [C, D])
    monkeypatch.setattr(collaborative, "EVENTS_A_USER", 1)
    newest, whole = (serve_to(learned, rows)["film"] for rows in ([C], [A, C]))
    assert items_of(newest)[0][0] == D
    assert items_of(whole) == [[row for row in items_of(newest)[0] if row != A]]
    assert learn_from(fit, [FILM], [A, B], [C, D]).columns.tolist() == [B, D]


@BOTH
def test_a_model_that_learned_from_nothing_shows_nothing(fit: Fit) -> None:
    found = serve_to(learn_from(fit, [FILM, SHOP], []), [A], [])
    assert {name: items_of(lists) for name, lists in found.items()} == {
        "film": [[], []],
        "shop": [[], []],
    }


@BOTH
def test_a_domain_where_nothing_happened_is_shown_nothing_of(fit: Fit) -> None:
    found = serve_to(learn_from(fit, [FILM, SHOP], [A, B], [A, B]), [A])
    assert items_of(found["film"]) == [[B]]
    assert items_of(found["shop"]) == [[]]


@BOTH
def test_nobody_gets_no_list(fit: Fit) -> None:
    assert len(serve_to(learn_from(fit, [FILM], [A, B]))["film"].rows) == 0
