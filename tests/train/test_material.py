import numpy as np

from crossrec.train.material import Material, following_pairs
from tests.small import histories


def test_pairs_are_different_texts_that_follow_each_other_in_one_history() -> None:
    text_of_row = np.array([0, 1, -1, 1, 2])
    found = histories([(0, 1), (1, 2), (3, 3), (4, 3)], [(0, 5), (2, 6), (4, 7)], [], [(4, 9)])
    assert following_pairs(found, text_of_row).tolist() == [[0, 1], [1, 2]]
    assert following_pairs(histories([]), text_of_row).shape == (0, 2)


def test_half_of_a_step_are_pairs_and_the_other_half_texts_by_themselves() -> None:
    material = Material([f"text {n}" for n in range(10)], np.array([[0, 1], [2, 3]]))
    first, second = material.draw(step=3, seed=17, count=8)
    pairs = set(zip(first[:4].tolist(), second[:4].tolist(), strict=True))
    assert pairs <= {(0, 1), (2, 3)}
    assert (first[4:] == second[4:]).all()
    assert len(set(first[4:])) == 4


def test_a_step_draws_the_same_again_and_another_step_something_else() -> None:
    material = Material([f"text {n}" for n in range(1_000)], np.zeros((0, 2), np.int64))
    one, again, other = (material.draw(step, 17, 64)[0].tolist() for step in (3, 3, 4))
    assert one == again != other
