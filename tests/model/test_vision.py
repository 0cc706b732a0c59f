import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from crossrec.data.picture import decode_image
from crossrec.errors import ConfigError
from crossrec.model.vision import check_vision, encode_images, load_vision, vision_digest
from tests.pictures import PIXELS, make_resnet, make_vit, picture, save_model

RED, BLUE = picture((200, 30, 30)), picture((20, 40, 220), (90, 90), format="JPEG")


def expected(folder: str, data: bytes) -> Any:
    """What the model itself says of a picture."""
    from transformers import AutoImageProcessor, AutoModel

    processors: Any = AutoImageProcessor
    processor = processors.from_pretrained(folder, backend="pil")
    pixels = processor(images=decode_image(data), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return AutoModel.from_pretrained(folder).eval()(pixel_values=pixels)


def test_a_vit_gives_the_vectors_of_its_pooler(tmp_path: Path) -> None:
    folder = make_vit(tmp_path)
    backbone = load_vision(folder)
    vectors = encode_images(backbone, [RED, BLUE])
    assert (backbone.pooling, backbone.width, vectors.shape) == ("pooler", 16, (2, 16))
    for data, vector in zip([RED, BLUE], vectors, strict=True):
        right = normalize(expected(folder, data).pooler_output[0], dim=0)
        np.testing.assert_allclose(vector, right.numpy(), atol=1e-5)
    assert vectors[0] @ vectors[1] < 0.999


def test_a_vit_without_weights_of_a_pooler_gives_its_first_token(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=PIXELS,
        patch_size=8,
    )
    folder = save_model(tmp_path, ViTForImageClassification(config))
    backbone = load_vision(folder)
    assert backbone.pooling == "cls"
    # A pooler that is made up would differ from load to load.
    right = normalize(expected(folder, RED).last_hidden_state[0, 0], dim=0)
    np.testing.assert_allclose(encode_images(backbone, [RED])[0], right.numpy(), atol=1e-5)


def test_a_resnet_gives_the_mean_of_its_map(tmp_path: Path) -> None:
    folder = make_resnet(tmp_path)
    backbone = load_vision(folder)
    vectors = encode_images(backbone, [RED])
    assert backbone.width == 24
    right = normalize(expected(folder, RED).last_hidden_state[0].mean((1, 2)), dim=0)
    np.testing.assert_allclose(vectors[0], right.numpy(), atol=1e-5)


def test_of_clip_the_part_that_reads_images_is_taken(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    vision = {**small, "image_size": PIXELS, "patch_size": 8}
    text = {**small, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    backbone = load_vision(save_model(tmp_path, model))
    assert (backbone.pooling, backbone.width) == ("pooler", 16)
    tower = {name: part for name, part in model.state_dict().items() if "vision_model" in name}
    assert tower
    loaded = list(backbone.model.state_dict().values())
    assert all(any(part.equal(other) for other in loaded) for part in tower.values())


def test_many_images_come_out_in_their_order_and_a_bad_one_as_zero(tmp_path: Path) -> None:
    backbone = load_vision(make_vit(tmp_path))
    images = [picture((10 * n, 250 - 9 * n, 40)) for n in range(20)]
    images[7] = images[19] = b"no picture"
    vectors = encode_images(backbone, images)
    assert not vectors[[7, 19]].any()
    for row in (0, 6, 8, 16, 18):
        alone = encode_images(backbone, [images[row]])[0]
        np.testing.assert_allclose(vectors[row], alone, atol=1e-5)
    assert not encode_images(backbone, [b""]).any()


def test_the_digest_changes_with_a_weight(tmp_path: Path) -> None:
    folder = make_vit(tmp_path)
    backbone = load_vision(folder)
    before = vision_digest(backbone)
    assert before == vision_digest(load_vision(folder))
    with torch.no_grad():
        next(backbone.model.parameters()).flatten()[0] += 1
    assert vision_digest(backbone) != before


def test_what_is_no_model_of_images_is_refused(tmp_path: Path, tiny_backbone: str) -> None:
    with pytest.raises(ConfigError, match=r"model.image_backbone .*expected a pretrained model"):
        check_vision(tiny_backbone)
    folder = Path(make_vit(tmp_path / "a"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"holds config.json and preprocessor_config.json"):
        check_vision(str(folder))
    # BERT beside a processor of images.
    folder = Path(make_vit(tmp_path / "b"))
    (folder / "config.json").write_text((Path(tiny_backbone) / "config.json").read_text())
    with pytest.raises(ConfigError, match="found bert, which is none"):
        check_vision(str(folder))


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    folder = Path(make_vit(tmp_path))
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "num_hidden_layers": 2}))
    with pytest.raises(ConfigError, match=r"expected all weights of vit, found no .*layer.*1"):
        load_vision(str(folder))


def test_images_of_any_size_are_refused_where_the_model_has_none(tmp_path: Path) -> None:
    folder = Path(make_vit(tmp_path))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_resize": False}))
    with pytest.raises(ConfigError, match="expected images all brought to one size"):
        check_vision(str(folder))
