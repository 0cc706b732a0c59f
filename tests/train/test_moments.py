import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from crossrec.config import ModelConfig
from crossrec.data.histories import DomainRange, Prepared, catalogue_path
from crossrec.data.itemstate import EventStates, states_on_day
from crossrec.data.replay import Histories, before, select_users
from crossrec.model.checkpoint import Model, load_model, save_model
from crossrec.model.fusion import PARTS, Shortlists
from crossrec.model.inference import item_state, user_state
from crossrec.model.recommender import Recommender
from crossrec.model.weights import BackboneFolder
from crossrec.schema import CATALOGUE, domain_folder
from crossrec.storage import Store
from crossrec.train import moments, shortlists
from crossrec.train.moments import GatherJob, Moment
from crossrec.train.shortlists import SHORTLIST, gather
from crossrec.vectorcache import read_vectors
from tests.small import Event, activity_of, histories, random_users

SHOP, VIDEO = DomainRange("shop", 0, 6, 0), DomainRange("video", 6, 10, 0)
DOMAINS = (SHOP, VIDEO)
BOUNDS = [(0, 6), (6, 10)]
ITEMS, WIDTH = 10, 8
MOMENT = Moment(10, 14, with_sequence=False)


@pytest.fixture
def job(tmp_path: Path) -> GatherJob:
    """Ten items with random text vectors, and a model with random weights."""
    store = Store(str(tmp_path))
    draw = torch.Generator().manual_seed(17)
    texts = torch.randn(ITEMS, WIDTH, generator=draw)
    rows = []
    for domain in DOMAINS:
        names = [f"item-{row}" for row in range(domain.start, domain.stop)]
        own = [{"domain": domain.name, "item_id": name, "text": name} for name in names]
        table = pa.Table.from_pylist(own, schema=CATALOGUE)
        store.write_parquet(catalogue_path("prepared/x", domain.name), table)
        sink = io.BytesIO()
        np.save(sink, texts[domain.start : domain.stop].numpy())
        store.write_bytes(f"vectors/{domain_folder(domain.name)}.npy", sink.getvalue())
        rows += [{"domain": domain.name, "item_id": name, "events": 1} for name in names]
    settings = ModelConfig(width=WIDTH, layers=1, heads=2, max_history=8)
    with torch.random.fork_rng():
        torch.manual_seed(17)
        recommender = Recommender(settings, WIDTH, ITEMS, 2).eval()
    recommender.start_from(texts)
    model = Model(settings, recommender, pa.Table.from_pylist(rows), ("shop", "video"))
    save_model(store, "models/m", model, BackboneFolder(tmp_path / "none", "digest"))
    prepared = Prepared("prepared/x", "x", DOMAINS, 1, 0, 0, ITEMS, 0)
    return GatherJob(store, prepared, "models/m", "vectors", pairs=100, seed=17)


@pytest.fixture(autouse=True)
def no_backbone_files(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()


# A crowd so that each item has a popularity of its own: row r had r + 1 events on day 3.
CROWD: list[list[Event]] = [[(row, 3)] * (row + 1) for row in range(ITEMS)]


def gathered(job: GatherJob, *users: Sequence[Event], moment: Moment = MOMENT) -> Shortlists | None:
    """The shortlists of users in a crowd that does nothing new."""
    found = histories(*users, *CROWD)
    activity = activity_of(found, ITEMS)
    return gather(job, moment, found, activity, EventStates.of(activity))


def some(lists: Shortlists | None) -> Shortlists:
    assert lists is not None
    return lists


def rows_of(
    lists: Shortlists, number: int, is_wanted: torch.Tensor, *users: Sequence[Event]
) -> list[int]:
    """Catalogue rows of a list's candidates, told by what is known of them on the day."""
    activity = activity_of(histories(*users, *CROWD), ITEMS)
    states = torch.from_numpy(states_on_day(activity, MOMENT.start)).half()
    assert len(states.unique(dim=0)) == ITEMS
    return sorted(
        int((states == own).all(1).nonzero()) for own in lists.items_BSG[number][is_wanted[number]]
    )


def test_gather_lists_the_unseen_items_of_a_domain(job: GatherJob) -> None:
    ada = [(0, 5), (2, 5), (4, 10), (7, 13)]
    lists = some(gathered(job, ada))
    assert lists.domain_BD.tolist() == [[1, 0], [0, 1]]
    assert rows_of(lists, 0, lists.is_real_BS, ada) == [1, 3, 4, 5]
    assert rows_of(lists, 1, lists.is_real_BS, ada) == [6, 7, 8, 9]
    assert lists.is_real_BS.shape == (2, SHORTLIST)


def test_gather_marks_what_came_next(job: GatherJob) -> None:
    # Row 2 was had before, and day 14 is too late.
    ada = [(0, 5), (2, 5), (2, 11), (4, 10), (1, 13), (5, 14), (7, 13)]
    lists = some(gathered(job, sorted(ada, key=lambda event: event[1])))
    assert rows_of(lists, 0, lists.is_next_BS, ada) == [1, 4]
    assert rows_of(lists, 1, lists.is_next_BS, ada) == [7]


def test_gather_of_the_newest_knows_all_events_before_them(job: GatherJob) -> None:
    # Of four users two have a newest event in days 10 to 13 that is new to them.
    ada, bob = [(0, 5), (2, 5), (4, 10), (1, 13)], [(0, 5), (7, 10)]
    again, late = [(1, 2), (2, 5), (1, 11)], [(1, 2), (2, 14)]
    newest = replace(MOMENT, is_newest=True)
    known = histories(*(user[:-1] for user in (ada, bob, again, late)), *CROWD)
    activity = activity_of(known, ITEMS)
    whole = histories(ada, bob, again, late, *CROWD)
    lists = some(gather(job, newest, whole, activity, EventStates.of(activity)))
    assert lists.whose_B.tolist() == [0, 1]
    states = torch.from_numpy(states_on_day(activity, 14)).half()
    for number, row in enumerate((1, 7)):
        found = lists.items_BSG[number][lists.is_next_BS[number]]
        assert [int((states == own).all(1).nonzero()) for own in found] == [row]
    # What ada had before her newest event is on no list, also what she had in those days.
    own = lists.items_BSG[0][lists.is_real_BS[0]]
    assert not (own.unsqueeze(1) == states[[0, 2, 4]]).all(2).any()


def test_gather_lists_those_alone_who_did_something_new(job: GatherJob) -> None:
    repeats, unknown, later = [(1, 2), (1, 11)], [(1, 11)], [(1, 2), (2, 14)]
    lists = some(gathered(job, repeats, [(0, 5), (4, 12)], unknown, later))
    assert lists.domain_BD.tolist() == [[1, 0]]
    assert gathered(job, repeats, unknown, later) is None


def assert_same(one: Shortlists, other: Shortlists, but: Sequence[str] = ()) -> None:
    for name, part in vars(one).items():
        if name not in but:
            assert torch.equal(part, getattr(other, name)), name


USERS = random_users(17, 30, ITEMS, 20)


@pytest.mark.parametrize("with_sequence", [False, True])
def test_gather_knows_nothing_of_the_moment_or_later(job: GatherJob, with_sequence: bool) -> None:
    # What users do from day 10 on is moved to another item; those who do something stay.
    moment = replace(MOMENT, with_sequence=with_sequence)
    known = [[event for event in user if event[1] < 10] for user in USERS]
    futures = [[[(first, 10), (second, 13)] for _ in USERS] for first, second in ((0, 7), (3, 9))]
    users = [
        [
            own + future if not {row for row, _ in own} & {0, 7, 3, 9} else own
            for own, future in zip(known, each, strict=True)
        ]
        for each in futures
    ]
    one, other = (some(gathered(job, *part, moment=moment)) for part in users)
    assert len(one) >= 4
    assert_same(one, other, but=["is_next_BS"])
    assert not torch.equal(one.is_next_BS, other.is_next_BS)


def test_gather_knows_nothing_of_what_comes_after_its_days(job: GatherJob) -> None:
    cut = [[event for event in user if event[1] < 14] for user in USERS]
    assert cut != USERS
    assert_same(some(gathered(job, *USERS)), some(gathered(job, *cut)))


def state_dense(job: GatherJob, users: Histories) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, text of the domain and sequence of users for all items, by dense products."""
    model = load_model(job.store, job.model).recommender
    texts = np.concatenate([read_vectors(job.store, job.vectors, d.name) for d in DOMAINS])
    items = item_state(model, torch.from_numpy(texts), torch.arange(ITEMS), torch.ones(ITEMS))
    events = EventStates.of(activity_of(users, ITEMS))
    state = user_state(model, items, before(users, 10), events, BOUNDS, 10)
    return (
        (state.profile_BW @ items.texts_IW.T).numpy(),
        torch.einsum("bdw,iw->bdi", state.domain_profile_BDW, items.texts_IW).numpy(),
        torch.einsum("bdw,iw->bdi", state.queries_BDW, items.vectors_IW).numpy(),
    )


def test_gather_takes_the_parts_of_each_candidate(job: GatherJob) -> None:
    ada, bob = [(0, 5), (7, 6), (4, 10)], [(1, 5), (9, 13)]
    lists = some(gathered(job, ada, bob, moment=replace(MOMENT, with_sequence=True)))
    text, text_domain, sequence = state_dense(job, histories(ada, bob, *CROWD))
    # Ada in shop, Bob in video.
    for number, (user, domain) in enumerate([(0, 0), (1, 1)]):
        real = lists.is_real_BS[number]
        states = states_on_day(activity_of(histories(ada, bob, *CROWD), ITEMS), 10)
        keys = torch.from_numpy(states).half()
        rows = [int((keys == own).all(1).nonzero()) for own in lists.items_BSG[number][real]]
        parts = lists.parts_BSP[number][real].float().numpy()
        found = [parts[:, PARTS.index(name)] for name in ("text", "text_domain")]
        np.testing.assert_allclose(found[0], text[user, rows], atol=1e-3)
        np.testing.assert_allclose(found[1], text_domain[user, domain, rows], atol=1e-3)
        own_sequence = lists.sequence_BS[number][real].float().numpy()
        np.testing.assert_allclose(own_sequence, sequence[user, domain, rows], atol=1e-3)


def test_gather_without_sequence_has_zeros_for_it(job: GatherJob) -> None:
    ada = [(0, 5), (4, 10)]
    without = some(gathered(job, ada))
    with_it = some(gathered(job, ada, moment=replace(MOMENT, with_sequence=True)))
    assert without.sequence_BS.abs().sum() == 0
    assert with_it.sequence_BS.abs().sum() > 0


def test_gather_takes_a_sample_of_each_domain(job: GatherJob) -> None:
    users = [[(0, 5), (4, 10), (7, 10)]] * 5 + [[(1, 5), (3, 10)]] * 5
    lists = some(gathered(replace(job, pairs=3), *users))
    assert lists.domain_BD.sum(0).tolist() == [3, 3]


def test_gather_does_not_depend_on_its_blocks(
    job: GatherJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = some(gathered(job, *USERS))
    monkeypatch.setattr(moments, "SCORES_A_BLOCK", 1)
    blocks = some(gathered(job, *USERS))
    assert len(whole) > 5
    for name in ("is_next_BS", "is_real_BS", "items_BSG", "domain_BD"):
        assert torch.equal(getattr(blocks, name), getattr(whole, name))
    torch.testing.assert_close(blocks.parts_BSP, whole.parts_BSP, rtol=1e-2, atol=1e-2)


def test_gather_does_not_depend_on_users_who_do_nothing_new(job: GatherJob) -> None:
    # They count as neighbours and popularity of course, so here they have no events at all.
    found = histories(*USERS, *CROWD)
    activity = activity_of(found, ITEMS)
    events = EventStates.of(activity)
    has = found.lengths > 0
    assert not has.all()
    one, other = (
        some(gather(job, MOMENT, part, activity, events))
        for part in (found, select_users(found, has))
    )
    assert_same(one, other, but=["whose_B"])


def test_gather_knows_a_user_again_at_another_moment(job: GatherJob) -> None:
    ada, bob = [(0, 5), (4, 10), (1, 12)], [(1, 5), (3, 12)]
    for moment, whose in ((MOMENT, [0, 1]), (replace(MOMENT, start=11), [0, 1])):
        assert some(gathered(job, ada, bob, moment=moment)).whose_B.tolist() == whose
    late = replace(MOMENT, start=12, stop=13)
    assert some(gathered(job, ada[:2], bob, moment=late)).whose_B.tolist() == [1]


def test_merge_takes_best_ranks_first_and_each_column_once() -> None:
    tops = [torch.tensor([[3, 1, 4]]), torch.tensor([[1, 2]])]
    columns, is_real = shortlists._merge(tops)
    # Firsts 3 and 1, seconds 1 and 2, third 4.
    assert columns[0][is_real[0]].tolist() == [3, 1, 2, 4]
    assert is_real[0].tolist() == [True] * 4 + [False] * (SHORTLIST - 4)


def test_merge_cuts_what_a_shortlist_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortlists, "SHORTLIST", 3)
    columns, is_real = shortlists._merge([torch.tensor([[3, 1]]), torch.tensor([[5, 2]])])
    assert columns.tolist() == [[3, 5, 1]]
    assert is_real.all()


def test_gather_keeps_the_best_of_a_large_domain_alone(
    job: GatherJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One probe of depth 1 and the most popular item of all: row 5 of shop.
    monkeypatch.setattr(shortlists, "PROBES", ({"text": 1.0},))
    monkeypatch.setattr(shortlists, "PROBE_DEPTH", 1)
    monkeypatch.setattr(shortlists, "POPULAR_DEPTH", 1)
    ada = [(0, 5), *((row, 10) for row in range(1, 6))]
    lists = some(gathered(job, ada))
    text, _, _ = state_dense(job, histories(ada, *CROWD))
    likest = 1 + int(text[0, 1:6].argmax())
    assert rows_of(lists, 0, lists.is_real_BS, ada) == sorted({likest, 5})


def test_gather_leaves_out_a_list_without_what_came_next(
    job: GatherJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortlists, "PROBES", ({"text": 1.0},))
    monkeypatch.setattr(shortlists, "PROBE_DEPTH", 1)
    monkeypatch.setattr(shortlists, "POPULAR_DEPTH", 1)
    text, _, _ = state_dense(job, histories([(0, 5)], *CROWD))
    least = 1 + int(text[0, 1:5].argmin())
    assert gathered(job, [(0, 5), (least, 10)]) is None
