"""The hold-out of a run: what is judged, and the lists that the scoring code makes for it.

By time, the newest days are judged and all before them is known. Under leave-one-out each user's
newest event is judged and all else is known; the day that is predicted is then the night.

    holdout = open_holdout(config, prepared, days)
    job = score_holdout(config, store, holdout, Lists(model_folder, outputs, work_folder))
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from crossrec.config import Config
from crossrec.data.histories import DomainRange, Prepared
from crossrec.evaluate.truth import KnownItems, holdout_truth, load_known_items, newest_truth
from crossrec.model.checkpoint import encoder_of
from crossrec.score.bucket import ScoreJob
from crossrec.score.catalogue import build_items, has_items
from crossrec.score.pipeline import new_places
from crossrec.score.stream import score_buckets
from crossrec.storage import Store

MAX_USERS = 200_000
"""Users of the input among whom the hold-out is judged: more do not change the third digit of a
mean."""

LIST_LENGTH = 50
"""Items a judged list holds."""

SETTINGS = ("new_places", "precision", "encoder", "explain")
"""Of a job: what the config's `score` says of judged lists."""


@dataclass(frozen=True)
class Holdout:
    """What is judged.

    whole: the input. known: what may be used, the same or a view of it. start, stop: days that are
    judged are start..stop-1; under leave-one-out there are none. buckets: those whose users are
    judged. for_all: whether lists are made for users without a known event too.
    """

    whole: Prepared
    known: Prepared
    start: int
    stop: int
    buckets: range
    for_all: bool = False

    @property
    def is_by_time(self) -> bool:
        """Whether days are judged, rather than each user's newest event."""
        return self.stop > self.start

    @property
    def active_until(self) -> int | None:
        """The day up to which a known user must do something new to get a list; None: all do."""
        return self.stop if self.is_by_time and not self.for_all else None

    def only(self, domain: DomainRange) -> "Holdout":
        """Return the hold-out as a model sees it that knows one domain alone.

        Users who are new to the domain get a list too: what such a model would show to anybody.
        """
        whole, known = self.whole.only(domain), self.known.only(domain)
        return replace(self, whole=whole, known=known, for_all=True)

    def known_items(self, store: Store) -> KnownItems:
        """Return what was known of the catalogue."""
        return load_known_items(store, self.known, self.start)

    def truth(self, store: Store, items: KnownItems) -> pa.Table:
        """Return what users did, as `truth.truth_of`."""
        if self.is_by_time:
            return holdout_truth(store, self.whole, items, self.buckets, self.start, self.stop)
        return newest_truth(store, self.whole, self.known, items, self.buckets)


def open_holdout(config: Config, prepared: Prepared, days: Mapping[str, int]) -> Holdout:
    """Return the hold-out of a run; `days` as finetune cut them."""
    share = MAX_USERS * prepared.buckets // max(prepared.users, 1)
    buckets = range(max(1, min(prepared.buckets, share)))
    known = prepared
    if config.evaluate.protocol == "leave_one_out":
        known = prepared.without_newest()
    return Holdout(prepared, known, days["holdout"], days["night"], buckets)


@dataclass(frozen=True)
class Lists:
    """Where the lists of a model go.

    model: folder; it is scored by the config's encoder, where it has that one. outputs: folders by
    system. work: folder of the item side and of the records of buckets. explain: reasons at most of
    each item that the system "model" lists.
    """

    model: str
    outputs: Mapping[str, str]
    work: str
    explain: int = 0


def score_holdout(config: Config, store: Store, holdout: Holdout, lists: Lists) -> ScoreJob:
    """Write what systems that the scoring code knows would show; return what was done."""
    items = f"{lists.work}/items"
    if not has_items(store, items):
        systems = tuple(lists.outputs)
        build_items(store, holdout.known, lists.model, holdout.start, systems, items)
    job = ScoreJob(
        store=store,
        prepared=holdout.known,
        model=lists.model,
        items=items,
        day=holdout.start,
        outputs=dict(lists.outputs),
        domains=tuple(domain.name for domain in holdout.known.domains),
        top_k=LIST_LENGTH,
        done=f"{lists.work}/done",
        new_places=new_places(config, LIST_LENGTH),
        active_until=holdout.active_until,
        precision=config.score.precision,
        encoder=encoder_of(store, lists.model, config.score.encoder),
        explain=lists.explain,
    )
    score_lists(job, holdout.buckets, config.score.num_actors)
    return job


def score_lists(job: ScoreJob, buckets: range, num_actors: int | None) -> None:
    """Do what `score_buckets` does, anew where lists were made by other settings of `score`.

    The places of lists do not tell settings apart: those that a rerun would not make go first.
    """
    made_by = {name: getattr(job, name) for name in SETTINGS}
    path = f"{job.done}/settings.json"
    if not job.store.exists(path) or job.store.read_json(path) != made_by:
        # The records first, so that none is left whose lists are gone.
        for folder in (job.done, *job.outputs.values()):
            job.store.delete(folder)
        job.store.write_json(path, made_by)
    score_buckets(job, buckets, num_actors)
