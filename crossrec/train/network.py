"""How the workers of a training reach each other: by the addresses that Ray knows their nodes by.

TorchTrainer(loop, torch_config=ByNodeAddress(), ...)
"""

import os
from dataclasses import dataclass

import psutil
import ray.util

# Ray 2.60 has no public names for these two, nor another place between worker and group.
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


class _ByNodeAddress(_TorchBackend):
    def on_start(  # type: ignore[override] # Ray's own asks for a TorchConfig too
        self, worker_group: BaseWorkerGroup, backend_config: TorchConfig
    ) -> None:
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


@dataclass
class ByNodeAddress(TorchConfig):
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
