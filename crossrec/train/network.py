"""How the workers of a training reach each other: by the addresses that Ray knows their nodes by.

TorchTrainer(loop, torch_config=ByNodeAddress(), ...)
"""

import os
from dataclasses import dataclass

import psutil
import ray.util
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig

# Ray 2.60 has no public name for it, nor another place between a worker's start and its group's.
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


class _ByNodeAddress(_TorchBackend):
    def on_start(self, worker_group: object, backend_config: BackendConfig) -> None:
        worker_group.execute(choose_interface)  # type: ignore[attr-defined]
        super().on_start(worker_group, backend_config)


@dataclass
class ByNodeAddress(TorchConfig):  # type: ignore[misc]
    """Ray's, but that gloo is told the network interface of each worker's node.

    Left alone it takes the address of the host's name, which is a loopback's on Debian and Ubuntu
    (127.0.1.1 in /etc/hosts): workers of two machines then wait for each other in vain.
    """

    @property
    def backend_cls(self) -> type[_ByNodeAddress]:
        """What Ray Train sets workers up with."""
        return _ByNodeAddress


def choose_interface() -> None:
    """Tell gloo, in a worker, the interface of its node's address, unless the user has."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Return the name of the network interface with an address, None where none has it."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return str(name)
    return None
