import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from crossrec.storage import Store
from crossrec.train import watch
from crossrec.train.progress import Progress
from crossrec.train.watch import log_epochs

FOLDER = "runs/night/train/1f2e"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.01)
    return Store(str(tmp_path))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def write(store: Store, number: int, epochs: dict[str, int]) -> None:
    """Write a checkpoint in which each phase stands at an epoch."""
    phases = [
        Progress(name, curve=[{"epoch": epoch, "loss": 0.5} for epoch in range(last + 1)])
        for name, last in epochs.items()
    ]
    progress = json.dumps({"phases": [asdict(phase) for phase in phases]}).encode()
    store.write_bytes(f"{FOLDER}/checkpoint_{number}/progress.json", progress)


def test_epochs_are_logged_once_and_live(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with log_epochs(store, FOLDER):
        write(store, 1, {"select": 0})
        wait_until(lambda: len(said(caplog)) == 1)
        write(store, 2, {"select": 1, "refit": 0})
        wait_until(lambda: len(said(caplog)) == 3)
        write(store, 3, {"select": 1, "refit": 1})
    assert said(caplog) == [
        "finetune: select epoch 0, loss 0.5",
        "finetune: select epoch 1, loss 0.5",
        "finetune: refit epoch 0, loss 0.5",
        "finetune: refit epoch 1, loss 0.5",
    ]


def test_epochs_before_a_restart_are_not_logged_again(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(store, 1, {"select": 2})
    with log_epochs(store, FOLDER):
        write(store, 2, {"select": 3})
    assert said(caplog) == [
        "finetune: goes on after 3 epochs",
        "finetune: select epoch 3, loss 0.5",
    ]


def test_unreadable_checkpoint_is_passed_over(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    store.write_bytes(f"{FOLDER}/checkpoint_2/progress.json", b'{"phases": [')
    store.write_bytes(f"{FOLDER}/checkpoint_3/model.safetensors", b"")
    with log_epochs(store, FOLDER):
        write(store, 1, {"select": 0})
    assert said(caplog) == ["finetune: select epoch 0, loss 0.5"]
