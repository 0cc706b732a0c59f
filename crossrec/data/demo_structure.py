"""What the demo data is drawn from: items and users of known topics and scenes.

In: settings and a random generator. Out: arrays that say what every item and user is, and from
them how likely a user's next topic and scene are.

    rng = np.random.default_rng(17)
    items = draw_items(rng, DemoSettings())
    users = draw_users(rng, DemoSettings(), 4_000)

Array suffixes: U users, I items, D days, M domains, T topics, S scenes.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml


@dataclass(frozen=True)
class DemoSettings:
    """What the demo data is like; shares are of 1."""

    items: dict[str, int] = field(
        default_factory=lambda: {"shop": 1_500, "video": 900, "social": 600}
    )
    """Items a domain."""
    domain_shares: dict[str, float] = field(
        default_factory=lambda: {"shop": 0.35, "video": 0.5, "social": 0.15}
    )
    """How events spread over the domains: rich and poor ones."""
    days: int = 120
    """Days from the first event to the last."""
    events_per_user: float = 26.0
    """Mean events of a user who is there from the first day; others have fewer."""
    topic_share: float = 0.85
    """Events on one of the user's favourite topics; the others follow the week's fashion."""
    scenes: int = 4
    """Hidden groups of items, across topics and domains."""
    scene_share: float = 0.85
    """Events within one of the user's scenes; the others are on any scene."""
    popularity: float = 0.6
    """Exponent of Zipf's law of the items' lasting popularity."""
    trend: float = 16.0
    """Height of a burst of popularity, in mean popularities of an item."""
    half_life_days: float = 7.0
    """After this time half of a burst is over."""
    new_days: int = 14
    """Newest days, in which `new_share` of the items are added."""
    new_share: float = 0.08
    single_domain_share: float = 0.25
    """Users who know one domain only."""

    @property
    def domains(self) -> list[str]:
        """Names of the domains, sorted: the order of every array."""
        return sorted(self.items)


KINDS = {
    "mixed": DemoSettings(),
    "collaboration": DemoSettings(
        scenes=24, scene_share=0.97, topic_share=0.15, trend=2.0, popularity=0.3, events_per_user=40
    ),
    "trend": DemoSettings(
        scenes=2, scene_share=0.1, topic_share=0.9, trend=40.0, half_life_days=4.0
    ),
}
"""What decides the next event, `data.demo`: a little of everything; hidden groups of items that no
text tells of; text and what is in fashion this week."""


@dataclass(frozen=True)
class DemoItems:
    """What the items are; arrays follow the rows of the items table."""

    domain: np.ndarray
    """Index into `DemoSettings.domains`."""
    topic: np.ndarray
    """Index into `topic_names()`."""
    scene: np.ndarray
    added: np.ndarray
    """Day of the first possible event; negative: before the demo begins."""
    popularity: np.ndarray
    """(D, I) popularity on each day; 0 before the item is added."""


@dataclass(frozen=True)
class DemoUsers:
    """What the users are."""

    topics: np.ndarray
    """(U, 2) favourite topics, one until `turn`, the other after; they may be the same."""
    turn: np.ndarray
    """Day from which the second favourite leads."""
    scenes: np.ndarray
    """(U, 2) main and other scene; they may be the same."""
    domains: np.ndarray
    """(U, M) shares of the domains; 0 where the user never goes."""
    discovered: np.ndarray
    """(U, M) day from which the user knows the domain."""
    first_day: np.ndarray
    events: np.ndarray
    """Events that the user would have, were they there from the first day."""


@cache
def words() -> dict[str, Any]:
    """Return the words of titles and categories."""
    loaded: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("demo_words.yaml").read_text(encoding="utf-8")
    )
    return loaded


def topic_names() -> list[str]:
    """Return the names of the topics in the order of their indices."""
    return list(words()["topics"])


def draw_items(rng: np.random.Generator, settings: DemoSettings) -> DemoItems:
    """Draw what the items are."""
    sizes = [settings.items[name] for name in settings.domains]
    count, days = sum(sizes), settings.days
    added = np.where(rng.random(count) < 0.6, -1, rng.integers(0, days - settings.new_days, count))
    is_new = rng.random(count) < settings.new_share
    added[is_new] = rng.integers(days - settings.new_days, days, is_new.sum())
    zipf = [np.arange(1, size + 1.0) ** -settings.popularity for size in sizes]
    lasting = np.concatenate([rng.permutation(ranks / ranks.mean()) for ranks in zipf])
    # A burst an item and four months, and one when it comes out.
    level_DI = (rng.random((days, count)) < 1 / 120) * rng.lognormal(0, 0.7, (days, count))
    comes_out = np.flatnonzero(added >= 0)
    level_DI[added[comes_out], comes_out] += 0.5
    decay = 0.5 ** (1 / settings.half_life_days)
    for day in range(1, days):
        level_DI[day] += level_DI[day - 1] * decay
    is_out_DI = np.arange(days)[:, None] >= added
    return DemoItems(
        domain=np.repeat(np.arange(len(sizes)), sizes),
        topic=rng.integers(0, len(topic_names()), count),
        scene=rng.integers(0, settings.scenes, count),
        added=added,
        popularity=(lasting + settings.trend * level_DI) * is_out_DI,
    )


def draw_users(rng: np.random.Generator, settings: DemoSettings, users: int) -> DemoUsers:
    """Draw what the users are."""
    shares = np.array([settings.domain_shares[name] for name in settings.domains])
    everyone, days = np.arange(users), settings.days
    home = pick(rng, np.tile(shares, (users, 1)))
    shares_UM = rng.dirichlet(shares * 6, users) + 1e-3
    shares_UM[rng.random(users) < settings.single_domain_share] = 0
    shares_UM[everyone, home] += 1e-3
    is_late_UM = rng.random(shares_UM.shape) < 0.45
    discovered_UM = np.where(is_late_UM, rng.integers(0, days, shares_UM.shape), 0)
    discovered_UM[everyone, home] = 0
    topics = rng.integers(0, len(topic_names()), (users, 2))
    topics[:, 1] = np.where(rng.random(users) < 0.4, topics[:, 0], topics[:, 1])
    scene = rng.integers(0, settings.scenes, users)
    other_scene = (scene + rng.integers(0, settings.scenes, users)) % settings.scenes
    # Gamma of shape 1.5: many light users, few heavy ones.
    events = 3 + rng.gamma(1.5, max(settings.events_per_user - 3, 0) / 1.5, users)
    return DemoUsers(
        topics=topics,
        turn=rng.integers(0, days, users),
        scenes=np.stack([scene, other_scene], 1),
        domains=shares_UM / shares_UM.sum(1, keepdims=True),
        discovered=discovered_UM,
        first_day=np.where(rng.random(users) < 0.6, 0, rng.integers(0, days, users)),
        events=events.astype(np.int64),
    )


def draw_fashion(rng: np.random.Generator, settings: DemoSettings) -> np.ndarray:
    """Return (D, T) shares of the topics in what nobody has a favourite for; they change weekly."""
    weeks = rng.lognormal(0, 1, (-(-settings.days // 7), len(topic_names())))
    return np.repeat(weeks / weeks.sum(1, keepdims=True), 7, axis=0)[: settings.days]


def topic_shares(
    known: DemoUsers,
    fashion: np.ndarray,
    settings: DemoSettings,
    users: np.ndarray,
    days: np.ndarray,
) -> np.ndarray:
    """Return (len(users), T) probabilities of each user's next topic on the day beside it."""
    shares = (1 - settings.topic_share) * fashion[days]
    leading = (days >= known.turn[users]).astype(int)
    rows = np.arange(len(users))
    for favourite, share in ((leading, 0.85), (1 - leading, 0.15)):
        shares[rows, known.topics[users, favourite]] += settings.topic_share * share
    return np.asarray(shares)


def scene_shares(known: DemoUsers, settings: DemoSettings, users: np.ndarray) -> np.ndarray:
    """Return (len(users), S) probabilities of each user's next scene."""
    unsettled = (1 - settings.scene_share) / settings.scenes
    shares = np.full((len(users), settings.scenes), unsettled)
    rows = np.arange(len(users))
    for place, share in ((0, 0.75), (1, 0.25)):
        shares[rows, known.scenes[users, place]] += settings.scene_share * share
    return shares


def pick(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Return one column a row, drawn by the shares of the row."""
    cumulative = np.cumsum(shares, axis=1)
    draw = rng.random((len(shares), 1)) * cumulative[:, -1:]
    return np.asarray((draw >= cumulative).sum(1).clip(max=shares.shape[1] - 1))
