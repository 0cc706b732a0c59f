import os
import socket

import pytest
import ray.util

from crossrec.train.network import INTERFACE, choose_interface, interface_of


def test_interface_is_that_of_the_node_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    # Set first, so that what is chosen goes with the test.
    monkeypatch.setenv(INTERFACE, "")
    monkeypatch.delenv(INTERFACE)
    choose_interface()
    assert os.environ[INTERFACE] in {name for _, name in socket.if_nameindex()}
    assert interface_of("127.0.0.1") == os.environ[INTERFACE]


def test_user_s_interface_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(INTERFACE, "ib0")
    choose_interface()
    assert os.environ[INTERFACE] == "ib0"


def test_address_of_no_interface_is_left_to_gloo() -> None:
    assert interface_of("198.51.100.7") is None
