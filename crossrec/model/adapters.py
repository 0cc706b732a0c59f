"""What of a backbone learns: all of it, its top layers, or small adapters beside frozen weights.

LoRA (Hu et al. 2021) and AdaLoRA (Zhang et al. 2023) come from `peft`; the bottleneck adapter
behind each layer's feed-forward (Houlsby et al. 2019, as placed by Pfeiffer et al. 2021), which it
lacks, is here.

    learning = select_trainable(backbone, settings)       # changes the backbone in place
    plain = merged(backbone)                              # the same vectors without an adapter
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crossrec.config import ModelConfig
from crossrec.errors import ConfigError, explain
from crossrec.model.backbone import TextBackbone

ADALORA_START = 1.5
"""AdaLoRA begins with so many times the rank, and prunes to it."""


class Bottleneck(nn.Module):
    """A linear map, then x + up(gelu(down(x))); `up` starts at 0, so that nothing changes."""

    def __init__(self, linear: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted output (..., width)."""
        mapped: Tensor = self.linear(x)
        moved: Tensor = self.up(nn.functional.gelu(self.down(mapped)))
        return mapped + moved


def select_trainable(backbone: TextBackbone, settings: ModelConfig) -> list[nn.Parameter]:
    """Freeze all but what the settings name; return the parameters that learn.

    Args:
        backbone: changed in place.
        settings: `trainable`: "head" (nothing of the backbone), "top" (its last `top_layers`
            layers), or "all". With an `adapter` it alone learns, in the same layers ("head": in
            all).

    Raises:
        ConfigError: the backbone has no stack of layers that is as deep, or no such modules.
    """
    if settings.adapter != "none":
        _add_adapter(backbone, settings)
        return [part for part in backbone.parameters() if part.requires_grad]
    select_layers(backbone.model, settings.trainable, settings.top_layers)
    # A pooler on top is not used by mean pooling: it would never get a gradient.
    for name, parameter in backbone.model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)
    return [part for part in backbone.parameters() if part.requires_grad]


def select_layers(model: nn.Module, trainable: str, top_layers: int) -> None:
    """Freeze all of a model but its last `top_layers` layers ("top"), or nothing of it ("all").

    Raises:
        ConfigError: as `find_layers`.
    """
    model.requires_grad_(trainable == "all")
    if trainable == "top":
        for layer in find_layers(model, top_layers)[-top_layers:]:
            layer.requires_grad_(True)


def check_trainable(source: str, settings: ModelConfig) -> None:
    """Try the settings on a backbone without its weights.

    Raises:
        ConfigError: as `select_trainable`.
    """
    from transformers import AutoConfig, AutoModel

    auto: Any = AutoModel
    trusted = {"trust_remote_code": settings.trust_remote_code}
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(source, **trusted), **trusted)
    nothing: Any = None
    select_trainable(TextBackbone(model, nothing, settings.text_tokens), settings)


def find_layers(model: nn.Module, at_least: int = 1) -> list[nn.Module]:
    """Return a model's layers, the lowest first: its longest list of modules that is in no other.

    Of a ResNet, or another model of images that narrows in stages, those are the stages.

    Raises:
        ConfigError: no list has as many.
    """
    deepest = list(max(_outer_lists(model), key=len, default=[]))
    if len(deepest) < at_least:
        found = f"{len(deepest)} layers in {type(model).__name__}"
        mend = "use a smaller number"
        raise ConfigError(explain("model.top_layers", "at most the backbone's layers", found, mend))
    return deepest


def _outer_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outer_lists(child)


def depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return how far below the top each parameter lies: 0 in the top layer and above all layers.

    What comes before the layers, embeddings, lies as deep as there are layers.
    """
    layers = find_layers(model, 0)
    inside = {
        part: index for index, layer in enumerate(reversed(layers)) for part in layer.parameters()
    }
    found, above = {}, len(layers)
    for part in model.parameters():
        # Modules come in the order of the forward pass.
        above = inside.get(part, above)
        found[part] = inside.get(part, above)
    return found


def _add_adapter(backbone: TextBackbone, settings: ModelConfig) -> None:
    layers = find_layers(backbone.model, settings.top_layers if settings.trainable == "top" else 1)
    first = len(layers) - settings.top_layers if settings.trainable == "top" else 0
    backbone.requires_grad_(False)
    if settings.adapter == "bottleneck":
        for layer in layers[first:]:
            _add_bottleneck(layer, settings.adapter_rank)
        return
    names = {name.rpartition(".")[2] for layer in layers for name, _ in _linear_maps(layer)}
    wanted = set(settings.adapter_targets or names)
    if not wanted <= names:
        expected = f"linear maps of a layer ({', '.join(sorted(names))})"
        found = ", ".join(sorted(wanted - names))
        mend = "use some of these names, or leave it out for all of them"
        raise ConfigError(explain("model.adapter_targets", expected, found, mend))
    chosen = {module for layer in layers[first:] for _, module in _linear_maps(layer)}
    targets = [
        name
        for name, module in backbone.model.named_modules()
        if module in chosen and name.rpartition(".")[2] in wanted
    ]
    backbone.model = _with_lora(backbone.model, settings, targets)


def _with_lora(model: nn.Module, settings: ModelConfig, targets: list[str]) -> Any:
    # Here: peft takes seconds to import, which those without an adapter do not pay.
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    rank = settings.adapter_rank
    common: dict[str, Any] = {
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        # GPT-2 stores its linear maps transposed.
        "fan_in_fan_out": any(type(module).__name__ == "Conv1D" for module in model.modules()),
    }
    if settings.adapter == "adalora":
        start = round(rank * ADALORA_START)
        # The number of steps is known later, to `schedule_adapter`.
        return get_peft_model(
            model, AdaLoraConfig(target_r=rank, init_r=start, total_step=100, **common)
        )
    return get_peft_model(model, LoraConfig(r=rank, **common))


def _linear_maps(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, module)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]


def _add_bottleneck(layer: nn.Module, rank: int) -> Bottleneck:
    """Put an adapter behind the last linear map of a layer, which ends its feed-forward part."""
    name, linear = _linear_maps(layer)[-1]
    width: Any = linear.out_features if isinstance(linear, nn.Linear) else linear.nf
    adapter = Bottleneck(linear, width, rank)
    _replace(layer, name, adapter)
    return adapter


def _replace(layer: nn.Module, name: str, module: nn.Module) -> None:
    setattr(layer.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module)


def schedule_adapter(backbone: TextBackbone, total_steps: int) -> None:
    """Tell AdaLoRA how many steps there will be: it prunes in the middle half of them."""
    config = _adalora(backbone)
    if config is not None:
        config.total_step = max(total_steps, 8)
        config.tinit, config.tfinal = config.total_step // 8, config.total_step // 3


def step_adapter(backbone: TextBackbone, step: int) -> None:
    """Let AdaLoRA move its ranks to where they matter; after a step, before gradients are reset."""
    if _adalora(backbone) is not None:
        model: Any = backbone.model
        model.base_model.update_and_allocate(step + 1)


ALLOCATED = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA's allocator of ranks remembers from step to step."""


def adapter_state(backbone: TextBackbone) -> dict[str, Any]:
    """Return what AdaLoRA knows beside its weights, tensors and lists alone; else nothing."""
    config = _adalora(backbone)
    if config is None:
        return {}
    model: Any = backbone.model
    allocator = model.base_model.rankallocator
    state = {name: dict(getattr(allocator, name)) for name in ALLOCATED}
    return state | {"rank_pattern": config.rank_pattern}


def restore_adapter(backbone: TextBackbone, state: Mapping[str, Any]) -> None:
    """Put back what `adapter_state` returned."""
    config = _adalora(backbone)
    if config is None:
        return
    model: Any = backbone.model
    for name in ALLOCATED:
        setattr(model.base_model.rankallocator, name, dict(state[name]))
    config.rank_pattern = state["rank_pattern"]


def adapter_penalty(backbone: TextBackbone) -> Tensor | None:
    """Return what keeps AdaLoRA's directions orthogonal (Zhang et al. 2023, eq. 4), else None."""
    config = _adalora(backbone)
    if config is None:
        return None
    found = []
    for name, part in backbone.model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            square = part @ part.T if "lora_A" in name else part.T @ part
            found.append(torch.linalg.matrix_norm(square - torch.eye(len(square)).to(square)))
    penalty: Tensor = config.orth_reg_weight * torch.stack(found).mean()
    return penalty


def _adalora(backbone: TextBackbone) -> Any:
    """Return the settings of the backbone's AdaLoRA, None where it has none."""
    config = getattr(backbone.model, "peft_config", {}).get("default")
    return config if config is not None and config.peft_type.value == "ADALORA" else None


def merged(backbone: TextBackbone) -> TextBackbone:
    """Return a copy that gives the same vectors with LoRA's products added to the weights.

    Bottlenecks cannot be added: `take_bottlenecks` separates them.
    """
    model: Any = copy.deepcopy(backbone.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    plain = TextBackbone(model, backbone.tokenizer, backbone.max_tokens, backbone.pooling)
    return plain.eval()


def take_bottlenecks(model: nn.Module) -> dict[str, Tensor]:
    """Remove the bottlenecks of a model in place; return their weights by layer and name."""
    tensors = {}
    for index, layer in enumerate(find_layers(model, 0)):
        for name, module in list(layer.named_modules()):
            if isinstance(module, Bottleneck):
                parts = {"down": module.down, "up": module.up}
                for part, linear in parts.items():
                    for kind, tensor in linear.state_dict().items():
                        tensors[f"{index}.{part}.{kind}"] = tensor
                _replace(layer, name, module.linear)
    return tensors


def put_bottlenecks(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `take_bottlenecks` took."""
    for index, layer in enumerate(find_layers(model, 0)):
        start = f"{index}."
        own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        if own:
            adapter = _add_bottleneck(layer, len(own["down.bias"]))
            adapter.load_state_dict(own, strict=False)
