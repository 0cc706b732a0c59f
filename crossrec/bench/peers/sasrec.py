"""Train RecTools' SASRec on a Parquet folder of events; one JSON line says how fast.

With a key `recommend`, the items a list, all users get theirs, and the line has their number too.

    python crossrec/bench/peers/sasrec.py '{"events": "...", "width": 128, ...}'

Runs in an environment of its own (requirements.txt beside it), without crossrec. Keys: events,
width, layers, heads, length, batch, negatives (0: softmax over all items), epochs.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    """Train, and print {"histories", "epoch_seconds"}."""
    settings = json.loads(sys.argv[1])

    import pandas as pd
    import pyarrow.parquet as pq
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    epochs: list[float] = []

    class Clock(Callback):  # type: ignore[misc]
        """Times the training batches of each epoch."""

        def on_train_epoch_start(self, *_: Any) -> None:
            self.began = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            epochs.append(round(time.perf_counter() - self.began, 3))

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=settings["epochs"],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            devices=1,
            callbacks=[Clock()],
        )

    events = pq.read_table(settings["events"], columns=["user_id", "item_id", "timestamp"])
    table = events.to_pandas()
    table.columns = [Columns.User, Columns.Item, Columns.Datetime]
    table[Columns.Weight] = 1.0
    table[Columns.Datetime] = pd.to_datetime(table[Columns.Datetime])
    model = SASRecModel(
        n_blocks=settings["layers"],
        n_heads=settings["heads"],
        n_factors=settings["width"],
        session_max_len=settings["length"],
        batch_size=settings["batch"],
        loss="gBCE" if settings["negatives"] else "softmax",
        n_negatives=settings["negatives"] or 1,
        get_trainer_func=trainer,
    )
    dataset = Dataset.construct(table)
    model.fit(dataset)
    known = table.groupby(Columns.User).size()
    # RecTools leaves out whoever has a single event: nothing to predict it from.
    found = {"histories": int((known > 1).sum()), "epoch_seconds": epochs}
    if settings.get("recommend"):
        users = known.index.to_numpy()
        began = time.perf_counter()
        model.recommend(users, dataset, k=settings["recommend"], filter_viewed=True)
        found["recommend_seconds"] = time.perf_counter() - began
        found["users"] = len(users)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
