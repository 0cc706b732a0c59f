"""How workers share what learns: `train.strategy`.

ddp: each holds all of it, and gradients are averaged. fsdp: each holds a share of every tensor of a
backbone that learns (FSDP2, Zhao et al. 2023), whose layers are put together only while they
compute; what is beside the backbone stays whole on all workers, for it is small, has scalars, which
cannot be shared out, and parts that not every worker's batch reaches.

    if train.strategy == "fsdp":
        shard(backbone.model, device, train.precision)         # before its optimizer is made
    model = join_workers(loss, device)
    with own_gradients(model): ...                             # nothing is exchanged yet
    model(...).backward()
    average_whole(model)
    norm = clip_gradients(parameters, 1.0)

Every worker must call the backbone equally often: each call gathers its layers from all of them.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from crossrec.model.adapters import find_layers


def place_among_workers() -> tuple[int, int]:
    """Return this worker's rank and the number of workers; 0 and 1 outside of Ray Train."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def world_size() -> int:
    """Return the number of workers; 1 outside of Ray Train."""
    return place_among_workers()[1]


def is_bf16(device: torch.device, precision: str) -> bool:
    """Return whether `train.precision` means bf16 on a device."""
    return precision == "bf16" or (
        precision == "auto"
        and device.type == "cuda"
        # Emulated, it is slower than fp32.
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def shard(model: nn.Module, device: torch.device, precision: str) -> None:
    """Share out a transformer among all workers, in place; alone, a worker keeps it whole.

    Each layer is moved to the device, cut and let go of before the next one, so that the device
    never holds all of it. Under bf16 layers are gathered in bf16: autocast would keep a copy of all
    of them from the forward to the backward pass. The shares, and sums of gradients, stay fp32.

    Args:
        model: with what is to learn chosen; its parameters are others afterwards.
        device: of this worker.
        precision: as `train.precision`.
    """
    if world_size() == 1:
        return
    _use(device)
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy()
    if is_bf16(device, precision):
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
    for part in (*find_layers(model, 0), model):
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)


def is_sharded(module: nn.Module) -> bool:
    """Return whether a part of a module is shared out."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def join_workers(loss: nn.Module, device: torch.device) -> nn.Module:
    """Return a module whose gradients are those of all workers, once `average_whole` was called."""
    _use(device)
    loss.to(device)
    if world_size() == 1:
        return loss
    if not is_sharded(loss):
        places = [device] if device.type == "cuda" else None
        return DistributedDataParallel(loss, places, find_unused_parameters=True)
    # As DDP does: rank 0's, should hosts round differently.
    for part in (*loss.parameters(), *loss.buffers()):
        if not isinstance(part, DTensor):
            distributed.broadcast(part.detach(), src=0)
    return loss


@contextlib.contextmanager
def own_gradients(model: nn.Module) -> Iterator[None]:
    """Let backward passes in the block add up this worker's gradients alone."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return
    shares = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in shares:
        part.set_requires_gradient_sync(False, recurse=False)
    yield
    for part in shares:
        part.set_requires_gradient_sync(True, recurse=False)


def average_whole(model: nn.Module) -> None:
    """Average over the workers the gradients of what is whole beside a sharded backbone.

    As DDP does; what no worker's batch has reached keeps no gradient.
    """
    if not is_sharded(model):
        return
    parts = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if not parts:
        return
    reached = torch.tensor([float(part.grad is not None) for part in parts], device=parts[0].device)
    distributed.all_reduce(reached)
    for part, count in zip(parts, reached.tolist(), strict=True):
        if count:
            part.grad = torch.zeros_like(part) if part.grad is None else part.grad
            distributed.all_reduce(part.grad)
            part.grad /= world_size()


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> float:
    """Shorten the gradient of all parameters, shared out or not, to a norm; return what it was."""
    shares = [part for part in parameters if isinstance(part, DTensor)]
    if not shares:
        return float(nn.utils.clip_grad_norm_(parameters, most))
    whole = [part for part in parameters if not isinstance(part, DTensor)]
    norms = []
    for parts in (shares, whole):
        norm = nn.utils.get_total_norm([part.grad for part in parts if part.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = torch.linalg.vector_norm(torch.stack([norm.to(shares[0].device) for norm in norms]))
    for parts in (shares, whole):
        nn.utils.clip_grads_with_norm_(parts, most, total)
    return float(total)


def gathered(state: Any, is_kept: bool) -> Any:
    """Return nested tensors with shares put together, on the CPU; all workers take part.

    Args:
        state: nested dicts and lists.
        is_kept: whether this worker wants them; else None stands in their place.
    """
    if isinstance(state, DTensor):
        tensor: Tensor = state.full_tensor().detach()
        return tensor.cpu() if is_kept else None
    if isinstance(state, dict):
        return {name: gathered(part, is_kept) for name, part in state.items()}
    if isinstance(state, list):
        return [gathered(part, is_kept) for part in state]
    return state


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this worker's share of a tensor that all workers have, cut as another is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    whole = tensor.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def shared_moments(state: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """Return an optimizer's whole state with the share of it that belongs to shared parameters."""
    moments = {
        index: {
            name: shared_out(value, parameters[index]) if isinstance(value, Tensor) else value
            for name, value in found.items()
        }
        for index, found in state["state"].items()
    }
    return state | {"state": moments}
