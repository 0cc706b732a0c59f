"""Two workers over one batch, in two processes, against one worker with all of it."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from crossrec.model.objectives import Objective, Targets, gather_rows
from crossrec.model.recommender import HistoryBatch
from tests.group import with_group
from tests.model.test_objectives import BATCH, TARGETS, make_loss, seeded

NEGATIVES = 12
OBJECTIVES = (Objective("softmax"), Objective("contrastive"))


def part_of(user: int) -> tuple[HistoryBatch, Targets]:
    """What a worker that has one of the two users sees."""
    own = TARGETS.users_N == user
    parts = (BATCH.rows_BL, BATCH.domains_BL, BATCH.days_BL)
    chosen = (TARGETS.sources_N[own], TARGETS.rows_N[own], TARGETS.elapsed_N[own])
    batch = HistoryBatch(*(part[user : user + 1] for part in parts))
    return batch, Targets(torch.zeros_like(chosen[0]), *chosen)


def gradients(loss: nn.Module) -> dict[str, Tensor]:
    named = loss.module if isinstance(loss, nn.parallel.DistributedDataParallel) else loss
    return {name: part.grad for name, part in named.named_parameters() if part.grad is not None}


def work(rank: int, folder: str) -> None:
    with_group(rank, folder, lambda: learn(rank, folder))


def learn(rank: int, folder: str) -> None:
    assert gather_rows(torch.arange(3 * rank)).tolist() == [0, 1, 2]
    assert not len(gather_rows(torch.arange(0)))
    for objective in OBJECTIVES:
        loss = make_loss(0, NEGATIVES, objective=objective)
        parallel = nn.parallel.DistributedDataParallel(loss, find_unused_parameters=True)
        summed = parallel(*part_of(rank), seeded(5))
        (summed * 2 / len(TARGETS.rows_N)).backward()
        if not rank:
            save_file(gradients(parallel), f"{folder}/{objective.name}")


def test_two_workers_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    spawn(work, (str(tmp_path),), nprocs=2)
    for objective in OBJECTIVES:
        found = load_file(tmp_path / objective.name)
        alone = make_loss(0, NEGATIVES, objective=objective)
        (alone(BATCH, TARGETS, seeded(5)) / len(TARGETS.rows_N)).backward()
        expected = gradients(alone)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
        assert any(gradient.any() for gradient in expected.values())
