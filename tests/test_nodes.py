import pytest
import ray

from crossrec.nodes import count_cpus_and_gpus, largest_node_cpus


def test_largest_node_is_one_that_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": True, "Resources": {"GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert largest_node_cpus() == 2
    monkeypatch.setattr(ray, "nodes", lambda: nodes[1:])
    assert largest_node_cpus() == 1


def test_what_asks_for_a_gpu_is_held_against_nodes_that_have_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
        {"Alive": True, "Resources": {"CPU": 6.0, "GPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 32.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert largest_node_cpus(with_gpu=True) == 6
    assert largest_node_cpus() == 64


def test_a_cluster_whose_workers_are_not_up_yet_has_no_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1e9})
    assert count_cpus_and_gpus() == (0, 0)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 2.0})
    assert count_cpus_and_gpus() == (8, 2)
