"""What a plain loop needs to score, all of it in memory: the stage without Ray and files."""

from dataclasses import dataclass

from crossrec.config import Config
from crossrec.data.histories import open_prepared, read_histories
from crossrec.data.replay import Histories, before, flatten
from crossrec.model.checkpoint import load_model
from crossrec.schema import US_PER_DAY
from crossrec.score.catalogue import load_items
from crossrec.score.lists import Lists
from crossrec.score.narrow import Precision
from crossrec.score.pipeline import new_places
from crossrec.score.scorer import Scorer
from crossrec.storage import Store


@dataclass(frozen=True)
class Loop:
    """What a plain loop needs: all of it in memory."""

    scorer: Scorer
    histories: list[Histories]
    day: int
    wanted: list[tuple[str, str]]
    top_k: int
    places: int
    users: int

    @classmethod
    def of(cls, config: Config, model: str, run_id: str, precision: Precision = "fp32") -> "Loop":
        """Read what a run that scored has left."""
        store = Store(config.storage.root)
        folder = store.read_json(f"runs/{run_id}/prepare.json")["prepared"]
        prepared = open_prepared(store, folder)
        day = prepared.as_of_us // US_PER_DAY + 1
        items = load_items(store, prepared, f"runs/{run_id}/items")
        histories = [
            before(flatten(read_histories(store, prepared, bucket)), day)
            for bucket in range(prepared.buckets)
        ]
        return cls(
            Scorer(
                load_model(store, f"models/{model}").recommender,
                items,
                prepared.domains,
                precision=precision,
            ),
            histories,
            day,
            [("model", domain.name) for domain in prepared.domains],
            config.score.top_k,
            new_places(config, config.score.top_k),
            prepared.users,
        )

    def score(self, histories: Histories) -> dict[str, Lists]:
        """Return the lists of a bucket by domain."""
        found = self.scorer.score(histories, self.day, self.wanted, self.top_k, self.places)
        return {name: lists for (_, name), lists in found.items()}
