"""Pictures and small models of them that tests share.

data = picture((200, 30, 30))                # a PNG, 48 x 32
folder = make_vit(tmp_path / "vit")          # random weights, vectors of width 16
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from crossrec.data.histories import Prepared
from crossrec.data.images import _write_part, hash_image
from crossrec.data.picture import decode_image
from crossrec.storage import Store

PIXELS = 32
"""Edge of what the models read."""


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (48, 32), **save: Any) -> bytes:
    """Return a picture of one colour whose left half is darker; a PNG, if nothing else is said."""
    from PIL import Image

    image = Image.new("RGB", size, colour)
    dark = (colour[0] // 3, colour[1] // 3, colour[2] // 3)
    image.paste(dark, (0, 0, size[0] // 2, size[1]))
    sink = io.BytesIO()
    image.save(sink, **{"format": "PNG", **save})
    return sink.getvalue()


def save_processor(folder: Path) -> None:
    """Write how images are prepared."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    processor.save_pretrained(folder)


def store_pictures(store: Store, prepared: Prepared, pictures: Mapping[int, bytes]) -> None:
    """Keep images as prepare does, by catalogue row, in a part for every two of them."""
    items = sorted(pictures.items())
    for part in range(0, len(items), 2):
        held: list[dict[str, Any]] = []
        for row, data in items[part : part + 2]:
            (domain,) = (found for found in prepared.domains if found.start <= row < found.stop)
            owner = {"domain": domain.name, "place": row - domain.start}
            held.append({**owner, "image_hash": hash_image(data), "image": data})
        _write_part(store, prepared.folder, f"{part:06d}", held)


def make_vit(folder: Path, **config: Any) -> str:
    """Save a ViT of random weights, with its pooler."""
    from transformers import ViTConfig, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": PIXELS,
        "patch_size": 8,
    }
    return save_model(folder, ViTModel(ViTConfig(**{**sizes, **config})))


def make_resnet(folder: Path) -> str:
    """Save a ResNet of random weights, vectors of width 24."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    return save_model(folder, ResNetModel(config))


def read_alone(folder: str, data: bytes, pooling: str) -> Any:
    """Return the unit vector of an image by transformers alone, without crossrec's loading."""
    from transformers import AutoImageProcessor, AutoModel

    processors: Any = AutoImageProcessor
    processor = processors.from_pretrained(folder, backend="pil")
    pixels = processor(images=decode_image(data), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        found = AutoModel.from_pretrained(folder, use_safetensors=True)(pixel_values=pixels)
    pooled = found.pooler_output if pooling == "pooler" else found.last_hidden_state[:, 0]
    return torch.nn.functional.normalize(pooled.flatten(), dim=0).numpy()


def save_model(folder: Path, model: Any) -> str:
    """Save a model as it would be on the hub, with weights that tell images apart."""
    draw = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for part in model.parameters():
            if part.dim() > 1:
                part.copy_(torch.randn(part.shape, generator=draw) * 0.3)
    model.save_pretrained(folder)
    save_processor(folder)
    return str(folder)
