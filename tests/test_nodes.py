import pytest
import ray

from crossrec.nodes import largest_node_cpus


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
