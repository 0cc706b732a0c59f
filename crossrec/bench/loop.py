"""What a plain loop needs to score, all of it in memory: the stage without Ray and files."""

from dataclasses import dataclass

from crossrec.config import Config
from crossrec.data.histories import open_prepared, read_histories
from crossrec.data.replay import Histories, before, flatten
from crossrec.model.checkpoint import Encoder, load_model
from crossrec.schema import US_PER_DAY
from crossrec.score.bucket import active_users
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
    config: Config

    @classmethod
    def of(
        cls,
        config: Config,
        model: str,
        items: str,
        scored_by: tuple[Precision, Encoder] = ("fp32", "full"),
        active: tuple[int, int] | None = None,
    ) -> "Loop":
        """Read what a run has left.

        Args:
            config: of the run.
            model: its folder.
            items: folder of the item side.
            scored_by: `score.precision` and `score.encoder`.
            active: days in which users must do something new, the first of which is predicted, as
                a hold-out is judged; default: all users, on the night's day.
        """
        store = Store(config.storage.root)
        folder = store.read_json(f"runs/{config.run_id}/prepare.json")["prepared"]
        prepared = open_prepared(store, folder)
        precision, encoder = scored_by
        day = prepared.as_of_us // US_PER_DAY + 1 if active is None else active[0]
        histories = [
            flatten(read_histories(store, prepared, bucket)) for bucket in range(prepared.buckets)
        ]
        if active is not None:
            histories = [active_users(part, *active) for part in histories]
        return cls(
            Scorer(
                load_model(store, model, encoder).recommender,
                load_items(store, prepared, items),
                prepared.domains,
                precision=precision,
            ),
            [before(part, day) for part in histories],
            day,
            [("model", domain.name) for domain in prepared.domains],
            config,
        )

    @property
    def users(self) -> int:
        """How many users have lists."""
        return sum(len(part.lengths) for part in self.histories)

    def score(self, histories: Histories, top_k: int | None = None) -> dict[str, Lists]:
        """Return the lists of a bucket by domain; top_k: default: as configured."""
        length = top_k or self.config.score.top_k
        places = new_places(self.config, length)
        found = self.scorer.score(histories, self.day, self.wanted, length, places)
        return {name: lists for (_, name), lists in found.items()}
