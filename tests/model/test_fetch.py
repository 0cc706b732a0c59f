import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from crossrec.config import ModelConfig
from crossrec.errors import ConfigError, CrossrecError
from crossrec.model import fetch
from crossrec.model.backbone import load_backbone
from crossrec.model.fetch import Pin, fetch_weights, pin_weights
from crossrec.model.source import BackboneSource
from crossrec.model.weights import locate_weights
from crossrec.storage import Store

WHERE = "model.backbone"
PATIENCE_S = 240


class Requests(logging.Handler):
    """Counts what the S3 server of the session was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        # The bucket, the root within it, and the name of the object.
        found = re.search(r"GET /[^ ?/]+/[^ ?/]+/([^ ?]+)\S* HTTP", record.getMessage())
        if found:
            self.gets[found[1]] += 1


@pytest.fixture
def weights(s3_root: str, tiny_backbone: str) -> Store:
    """The tiny backbone on S3, with pickled weights beside it."""
    store = Store(s3_root)
    for path in Path(tiny_backbone).iterdir():
        store.write_bytes(path.name, path.read_bytes())
    store.write_bytes("pytorch_model.bin", b"a pickle")
    store.write_bytes("1_Pooling/config.json", b'{"pooling_mode_cls_token": true}')
    return store


@pytest.fixture
def requests() -> Iterator[Requests]:
    if os.environ.get("CROSSREC_TEST_S3_ENDPOINT"):
        pytest.skip("counts the requests to a server of this process")
    logger, handler = logging.getLogger("werkzeug"), Requests()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


def locate_together(barrier: Barrier, uri: str, cache: Path) -> None:
    """What a worker does; all of them begin at once."""
    barrier.wait(PATIENCE_S)
    place = locate_weights(uri, {}, cache=cache)
    assert (Path(place) / "model.safetensors").is_file()


def test_processes_of_a_node_fetch_each_object_once(
    weights: Store, requests: Requests, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (spawn.Barrier(2), weights.root, tmp_path)
    processes = [spawn.Process(target=locate_together, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(requests.gets.values()) == {1}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(requests.gets)
    assert "pytorch_model.bin" not in requests.gets


def test_weights_of_a_uri_pool_as_their_folder_says(weights: Store, tmp_path: Path) -> None:
    place = locate_weights(weights.root, {}, cache=tmp_path)
    assert load_backbone(place, 16).pooling == "cls"
    assert not (Path(place) / "pytorch_model.bin").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_fetched_anew(
    weights: Store, requests: Requests, tmp_path: Path, name: str
) -> None:
    pin = pin_weights(weights, WHERE, tmp_path)
    path = fetch_weights(weights, pin, tmp_path) / name
    whole = path.read_bytes()
    path.write_bytes(bytes(reversed(whole)))
    requests.gets.clear()
    assert (fetch_weights(weights, pin, tmp_path) / name).read_bytes() == whole
    assert requests.gets == {name: 1}
    path.write_bytes(whole[:-1])
    assert pin_weights(weights, WHERE, tmp_path) == pin
    assert path.read_bytes() == whole


def fetch_and_die(uri: str, pin: Pin, cache: Path) -> None:
    """Be killed within the second file."""
    download = fetch._download
    fetched: list[str] = []

    def stop(store: Store, name: str, target: Path) -> None:
        download(store, name, target)
        fetched.append(name)
        if len(fetched) == 2:
            target.write_bytes(target.read_bytes()[:10])
            os.kill(os.getpid(), signal.SIGKILL)

    fetch._download = stop
    fetch_weights(Store(uri), pin, cache)


def test_what_a_killed_process_left_does_not_hold_up_the_next(
    weights: Store, requests: Requests, tmp_path: Path
) -> None:
    pin = pin_weights(weights, WHERE, tmp_path / "driver")
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=fetch_and_die, args=(weights.root, pin, tmp_path / "node"))
    requests.gets.clear()
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert requests.gets.total() == 2
    folder = fetch_weights(weights, pin, tmp_path / "node")
    # The first is whole and was kept; the second is fetched again.
    assert requests.gets.total() == len(pin.files) + 1
    assert load_backbone(str(folder), 16).width == 32


def test_changed_weights_under_a_uri_are_fetched_as_new(weights: Store, tmp_path: Path) -> None:
    first = pin_weights(weights, WHERE, tmp_path)
    before = fetch_weights(weights, first, tmp_path)
    said = weights.read_bytes("config.json")
    weights.write_bytes("config.json", said + b"\n")
    second = pin_weights(weights, WHERE, tmp_path)
    assert second.digest != first.digest
    assert (fetch_weights(weights, second, tmp_path) / "config.json").read_bytes() == said + b"\n"
    assert (before / "config.json").read_bytes() == said


def test_a_node_refuses_other_weights_than_the_driver_saw(weights: Store, tmp_path: Path) -> None:
    pin = pin_weights(weights, WHERE, tmp_path / "driver")
    weights.write_bytes("model.safetensors", b"others")
    with pytest.raises(ConfigError, match=r"expected model.safetensors as the run began with it"):
        fetch_weights(weights, pin, tmp_path / "node")
    # The driver's own node has them still.
    assert load_backbone(str(fetch_weights(weights, pin, tmp_path / "driver")), 16).width == 32


def test_a_run_keeps_to_the_weights_it_began_with(
    weights: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "node_cache", lambda: tmp_path / "cache")
    store = Store(str(tmp_path / "store"))
    source = BackboneSource(store, ModelConfig(backbone=weights.root))
    digest = source.pinned("night").digest()
    assert source.pinned("night").digest() == digest
    tensors = weights.read_bytes("model.safetensors")
    weights.write_bytes("model.safetensors", tensors[:-4] + b"\0\0\0\1")
    with pytest.raises(ConfigError, match=r"run night began with, found others: model.safetensors"):
        source.pinned("night")
    assert source.pinned("next night").digest() != digest


def test_files_that_change_while_they_are_read_are_not_taken(
    weights: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = fetch._download

    def overtaken(store: Store, name: str, target: Path) -> None:
        download(store, name, target)
        if name == "config.json":
            store.write_bytes(name, b"{}")

    monkeypatch.setattr(fetch, "_download", overtaken)
    with pytest.raises(CrossrecError, match="found files that change"):
        pin_weights(weights, WHERE, tmp_path)


def test_a_uri_without_safetensors_is_told_before_anything_is_fetched(
    weights: Store, requests: Requests, tmp_path: Path
) -> None:
    weights.delete("model.safetensors")
    with pytest.raises(ConfigError, match=r"found no file of safetensors"):
        locate_weights(weights.root, {}, cache=tmp_path)
    with pytest.raises(ConfigError, match=r"found no such folder"):
        locate_weights(f"{weights.root}/nowhere", {}, cache=tmp_path)
    assert not {"config.json", "tokenizer.json"} & set(requests.gets)


def test_weights_that_nobody_has_loaded_for_long_go(weights: Store, tmp_path: Path) -> None:
    first = fetch_weights(weights, pin_weights(weights, WHERE, tmp_path), tmp_path)
    old = time.time() - fetch.UNUSED_S - 60
    os.utime(first, (old, old))
    weights.write_bytes("config.json", weights.read_bytes("config.json") + b"\n")
    second = fetch_weights(weights, pin_weights(weights, WHERE, tmp_path), tmp_path)
    assert not first.exists()
    weights.write_bytes("config.json", weights.read_bytes("config.json") + b"\n")
    pin_weights(weights, WHERE, tmp_path)
    assert second.exists()


def test_a_cache_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = fetch.node_cache()
    assert folder.stat().st_mode & 0o077 == 0
    shutil.rmtree(folder)
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(CrossrecError, match="expected a folder of one's own"):
        fetch.node_cache()
