"""A pretrained model of images that turns encoded pictures into vectors.

In: a folder of weights, or a hub id, and images as bytes. Out: one L2-normalised float32 vector an
image.

    backbone = load_vision("/weights/vit")
    vectors = encode_images(backbone, [png, jpeg])      # (2, 768)

Tensor suffixes: B images, C channels, H and W height and width, T tokens, V width of a vector.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crossrec.config import ModelConfig
from crossrec.data.picture import BadImage, decode_image
from crossrec.errors import ConfigError, explain
from crossrec.model.adapters import select_layers
from crossrec.model.pooling import pool

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

IMAGES_A_BATCH = 16
"""Images of one forward pass (ViT-B at 224 pixels: 100 MB of activations)."""


class VisionBackbone(nn.Module):
    """Image processor, model and pooling in one, then the L2 norm.

    pooling: "pooler", what the model itself makes of an image (of a ResNet the mean of its map); or
    of its tokens "cls", the first, or "mean". width: of a vector. shape: (C, H, W) of what it
    reads. lacks_pooler: whether its pooler is made up, for want of weights, and not used.

    Batch norms keep the statistics that they came with, in training too, so that an image has one
    vector whatever else is in its batch; their scales and shifts may learn.
    """

    def __init__(
        self, model: "PreTrainedModel", processor: Any, lacks_pooler: bool = False
    ) -> None:
        from PIL import Image

        super().__init__()
        self.model = model
        self.processor = processor
        self.lacks_pooler = lacks_pooler
        # Models name their widths in many ways, so one image is encoded to see.
        pixels_1CHW = self.pixels(Image.new("RGB", (64, 64)))
        self.shape = pixels_1CHW.shape[1:]
        self.pooling = _pooling(model, pixels_1CHW, lacks_pooler)
        with torch.inference_mode():
            self.width = int(self(pixels_1CHW).shape[1])

    def train(self, mode: bool = True) -> Self:
        """Set dropout on or off; batch norms stay as they are."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the model but those of a pooler that is made up."""
        tensors = self.model.state_dict()
        if not self.lacks_pooler:
            return tensors
        return {name: tensor for name, tensor in tensors.items() if not _is_of_pooler(name)}

    def pixels(self, image: "Image") -> Tensor:
        """Return (1, C, H, W) float32, resized and normalised as the model was trained."""
        return _pixels(self.processor, image)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return (B, V) unit vectors."""
        found = self.model(pixel_values=pixels_BCHW)
        if self.pooling == "pooler":
            pooled_BV = found.pooler_output.flatten(1)
        elif found.last_hidden_state.dim() == 4:
            pooled_BV = found.last_hidden_state.mean((2, 3))
        else:
            hidden_BTV = found.last_hidden_state
            mask_BT = torch.ones(hidden_BTV.shape[:2], dtype=torch.int64, device=hidden_BTV.device)
            pooled_BV = pool(hidden_BTV, mask_BT, self.pooling)
        return nn.functional.normalize(pooled_BV.float(), dim=-1)


def _is_of_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _pixels(processor: Any, image: "Image") -> Tensor:
    pixels_1CHW: Tensor = processor(images=image, return_tensors="pt")["pixel_values"]
    return pixels_1CHW


def check_vision(source: str, trust_remote_code: bool = False) -> Any:
    """Check, without its weights, that a model reads images; return its config and processor.

    Raises:
        ConfigError: there is no such model, it reads something else, or nothing says how images
            are to be prepared for it.
    """
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor
    from transformers.models.auto.modeling_auto import MODEL_MAPPING
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    where, expected = f"model.image_backbone {source}", "a pretrained model of images"
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        # Of a model of texts and images (CLIP, SigLIP), the part that reads images.
        config = getattr(config, "vision_config", config)
        processors: Any = AutoImageProcessor
        processor = processors.from_pretrained(
            source, backend="pil", trust_remote_code=trust_remote_code
        )
        sizes = [(40, 60), (300, 200)]
        shapes = {_pixels(processor, Image.new("RGB", size)).shape for size in sizes}
    except (OSError, ValueError, KeyError, ImportError) as error:
        found = " ".join(str(error).split())[:200]
        mend = "check the path or id, and that it holds config.json and preprocessor_config.json"
        raise ConfigError(explain(where, expected, found, mend)) from error
    known: Any = MODEL_MAPPING.get(type(config), None)
    kinds = known if isinstance(known, tuple) else (known,)
    if known is not None and all(kind.main_input_name != "pixel_values" for kind in kinds):
        mend = "name a model of images, such as ViT or ResNet"
        raise ConfigError(explain(where, expected, f"{config.model_type}, which is none", mend))
    if len(shapes) != 1 or len(next(iter(shapes))) != 4:
        mend = "name a model whose preprocessor_config.json has a size"
        raise ConfigError(
            explain(where, "images all brought to one size", f"{sorted(shapes)}", mend)
        )
    return config, processor


def load_vision(source: str, trust_remote_code: bool = False) -> VisionBackbone:
    """Load a model of images from a local folder or by its hub id; never from a pickle.

    Raises:
        ConfigError: as `check_vision`, or the weights are not there or not all of them.
    """
    from transformers import AutoModel

    config, processor = check_vision(source, trust_remote_code)
    where = f"model.image_backbone {source}"
    mend = "check that it holds config.json, model.safetensors and preprocessor_config.json"
    try:
        model, loading = AutoModel.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())[:200]
        raise ConfigError(explain(where, "a pretrained model of images", found, mend)) from error
    # Transformers draws weights that a file lacks at random. A pooler without its own, as of a
    # classifier's export, is gone without; anything else means other vectors in every process.
    lacking = sorted(loading["missing_keys"])
    others = [name for name in lacking if not _is_of_pooler(name)]
    if others:
        expected = f"all weights of {config.model_type}"
        raise ConfigError(explain(where, expected, f"no {others[0]}", mend))
    return VisionBackbone(model.eval(), processor, bool(lacking)).eval()


@torch.inference_mode()
def _pooling(model: "PreTrainedModel", pixels_1CHW: Tensor, lacks_pooler: bool) -> str:
    """Return the model's own pooling where it has one, else the first token, else the mean."""
    found = model(pixel_values=pixels_1CHW)
    if not lacks_pooler and getattr(found, "pooler_output", None) is not None:
        return "pooler"
    has_first = any(name.endswith("cls_token") for name, _ in model.named_parameters())
    return "cls" if has_first else "mean"


def vision_digest(backbone: VisionBackbone) -> str:
    """Return the sha256 of all weights and of how images are read."""
    digest = hashlib.sha256(f"{backbone.pooling}|{backbone.processor.to_json_string()}".encode())
    for name, tensor in sorted(backbone.weights().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def select_image_layers(backbone: VisionBackbone, settings: ModelConfig) -> None:
    """Freeze all of a model of images but what `image_trainable` and `top_layers` name.

    Raises:
        ConfigError: it has no list of layers, or stages, that is as long.
    """
    select_layers(backbone.model, settings.image_trainable, settings.top_layers)
    for name, parameter in backbone.model.named_parameters():
        # Not used, it would never get a gradient.
        if _is_of_pooler(name) and backbone.pooling != "pooler":
            parameter.requires_grad_(False)


def check_image_layers(config: Any, settings: ModelConfig) -> None:
    """Try the settings on a model of images, by its config, without its weights.

    Raises:
        ConfigError: as `select_image_layers`.
    """
    from transformers import AutoModel

    auto: Any = AutoModel
    with torch.device("meta"):
        model = auto.from_config(config, trust_remote_code=settings.trust_remote_code)
    select_layers(model, settings.image_trainable, settings.top_layers)


@torch.inference_mode()
def encode_images(backbone: VisionBackbone, images: Sequence[bytes]) -> np.ndarray:
    """Return (B, V) float32 vectors in the order of the images; zero for one that cannot be read.

    Images are decoded one at a time, so that never more than one is in memory at its full size.
    """
    device = next(backbone.parameters()).device
    rows: list[int] = []
    vectors: list[np.ndarray] = []
    held: list[Tensor] = []
    for row, data in enumerate(images):
        try:
            held.append(backbone.pixels(decode_image(data)))
            rows.append(row)
        except BadImage:
            pass  # prepare has counted it
        if held and (len(held) == IMAGES_A_BATCH or row == len(images) - 1):
            vectors.append(backbone(torch.cat(held).to(device)).cpu().numpy())
            held = []
    found = np.concatenate(vectors) if vectors else np.zeros((0, backbone.width), np.float32)
    encoded = np.zeros((len(images), found.shape[1]), np.float32)
    encoded[rows] = found
    return encoded
