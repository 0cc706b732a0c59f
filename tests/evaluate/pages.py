"""Made-up metrics and users for the report's tests, and a reader of pages.

metrics = small_metrics()     # two domains, four systems, figures that are easy to divide
metrics = whole_metrics()     # all that metrics.json can hold, the longer study included
"""

from html.parser import HTMLParser
from typing import Any

VOID = {"br", "input", "link", "meta"}
KS = (5, 10, 20, 50)


class Page(HTMLParser):
    """Reads a page, fails where tags do not match, and keeps elements and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def labels(self) -> list[str]:
        """Return what the charts say to a screen reader."""
        return [str(attributes["aria-label"]) for attributes in self.all("svg")]

    def text(self, *tags: str) -> str:
        hidden = ("script", "style", "title")
        return " ".join(
            text for tag, text in self.texts if (tag in tags if tags else tag not in hidden)
        )


def figures(ndcg: float, pairs: int = 1660) -> dict[str, float]:
    return {"pairs": pairs, "hr@10": 2 * ndcg, "recall@10": ndcg, "ndcg@10": ndcg}


def system(shop: float, video: float, cold: float = 0.0) -> dict[str, Any]:
    """Figures of a system; all is the mean of two domains with equally many pairs."""
    return {
        "all": figures((shop + video) / 2),
        "cold_item": figures(cold, 193),
        "warm_item": figures((shop + video) / 2, 1541),
        "cold_in_domain": None,
        "domain": {"shop": figures(shop, 830), "video": figures(video, 830)},
    }


def compared(difference: float, low: float, high: float) -> dict[str, Any]:
    """What the bootstrap says of a system."""
    return {"pairs": 1660, "difference": difference, "low": low, "high": high, "better": 0.99}


def small_metrics() -> dict[str, Any]:
    curve = [
        {"phase": "fit", "epoch": 0, "loss": None, "ndcg@10": 0.03, "seconds": 9.0},
        {"phase": "fit", "epoch": 1, "loss": 6.5, "ndcg@10": 0.05, "seconds": 9.0},
        {"phase": "fit", "epoch": 2, "loss": 5.5, "ndcg@10": 0.07, "seconds": 9.0},
    ]
    domains = [
        {"name": "shop", "start": 0, "stop": 1200, "events": 90_000, "users": 5000},
        {"name": "video", "start": 1200, "stop": 4000, "events": 59_200, "users": 4000},
    ]
    source = {"table": "events", "path": "s3://b/p0.parquet", "bytes": 1_200_000, "rows": 10_000}
    return {
        "run_id": "2014-06-08",
        "k": 10,
        "holdout": {
            "start": "2014-05-26",
            "stop": "2014-06-09",
            "days": 14,
            "pairs": 1660,
            "users": 1204,
        },
        "systems": {
            "popularity_all": system(0.001, 0.002),
            "popularity_7d": system(0.05, 0.07),
            "model": system(0.08, 0.10, cold=0.02),
            "step0": system(0.03, 0.04, cold=0.01),
        },
        "training": {"curve": curve, "best_epoch": 2, "fusion": {"text": 0.42}},
        "model": {"id": "m1", "backbone": "pkg://minilm", "parameters": 22_713_216},
        "data": {
            "as_of": "2014-06-08T00:00:00+00:00",
            "domains": domains,
            "users": 7115,
            "users_without_accepted_events": 4,
            "events": 149_200,
            "items": 4000,
            "ignored_after_as_of": 112,
            "rejects": {"events": {"null user_id": 20, "item unknown": 30}, "items": {}},
            "inputs": [source],
            "events_by_week": {
                "shop": {"2014-05-19": 700, "2014-06-02": 900},
                "video": {"2014-05-26": 400},
            },
        },
    }


def small_sample() -> list[dict[str, Any]]:
    return [
        {
            "user_id": "anna",
            "history": [
                {"date": "2014-01-02", "domain": "shop", "item_id": "s1", "title": "Old atlas"},
                {"date": "2014-05-20", "domain": "video", "item_id": "v1", "title": "New film"},
            ],
            "lists": {
                "shop": [
                    {"item_id": "s7", "title": "Lamp", "score": 3.25, "is_next": False},
                    {"item_id": "s8", "title": "Star chart", "score": 2.5, "is_next": True},
                ],
                "video": [],
            },
            "next": [
                {"domain": "shop", "item_id": "s8", "title": "Star chart"},
                {"domain": "video", "item_id": "v9", "title": "Comets"},
            ],
        },
        {"user_id": "ben", "history": [], "lists": {}, "next": []},
    ]


def small_ratings() -> dict[str, Any]:
    """Errors of ratings in two domains."""

    def errors(events: int, model: float) -> dict[str, Any]:
        rmse = {"model": model, "biases": 0.8123, "domain_mean": 1.1}
        mae = {"model": 0.5501, "biases": 0.6, "domain_mean": 0.9}
        return {"events": events, "rmse": rmse, "mae": mae}

    domains = {"shop": errors(1000, 0.72), "video": errors(234, 0.78)}
    return {"all": errors(1234, 0.7312), "domain": domains}


def small_calibration() -> dict[str, Any]:
    """Probabilities of .002 and .1, of which in the shop none and half came true."""

    def figures(pairs: int, bins: list[tuple[float, float]]) -> dict[str, Any]:
        said, came = ([part[n] for part in bins] for n in (0, 1))
        errors = [abs(part[0] - part[1]) for part in bins]
        names = ("low", "high", "predicted", "observed")
        return {
            "pairs": pairs,
            "predicted": sum(said) / len(bins),
            "observed": sum(came) / len(bins),
            "ece": sum(errors) / len(bins),
            "bins": [
                dict(zip(names, (p / 2, 2 * p, p, rate), strict=True))
                | {"pairs": pairs // len(bins)}
                for p, rate in bins
            ],
        }

    def part(pairs: int) -> dict[str, Any]:
        return {
            "all": figures(2 * pairs, [(0.002, 0.001), (0.1, 0.08)]),
            "domain": {
                "shop": figures(pairs, [(0.002, 0.0), (0.1, 0.05)]),
                "video": figures(pairs, [(0.002, 0.002), (0.1, 0.11)]),
            },
        }

    found = {"days": 14, "top_k": 50, "users": 40}
    return found | {"known_users": part(4000), "judged_lists": part(2000)}


LEVELS = {
    # NDCG@10 of all lists, and on new items; seconds of a baseline
    "model": (0.0813, 0.0210, None),
    "without_sequence": (0.0786, 0.0200, None),
    "step0": (0.0644, 0.0150, None),
    "popularity_30d": (0.0642, 0.0, None),
    "popularity_7d": (0.0592, 0.0, None),
    "als": (0.0171, 0.0, 24.31),
    "als_all_domains": (0.0152, 0.0, 38.02),
    "item_knn": (0.0134, 0.0, 1.94),
    "item_knn_all_domains": (0.0141, 0.0, 3.11),
    "popularity_all": (0.0038, 0.0, None),
    "untrained_backbone": (0.0027, 0.0094, None),
}


def deep(ndcg: float, pairs: int) -> dict[str, float]:
    """Figures at every k, rising with it."""
    found: dict[str, float] = {"pairs": pairs}
    for k in KS:
        grown = ndcg * (k / 10) ** 0.3
        found |= {f"hr@{k}": min(1.0, 2.1 * grown), f"recall@{k}": 1.8 * grown}
        found |= {f"ndcg@{k}": grown, f"mrr@{k}": 0.8 * ndcg}
    return {name: round(value, 5) for name, value in found.items()}


def whole_system(name: str) -> dict[str, Any]:
    level, cold, _ = LEVELS[name]
    # Rare items are what the model is for; popularity is nothing but the last decile.
    rare = 0.5 if name in ("model", "step0", "without_sequence") else 0.05
    bands = {"0": (0.62, 88), "1-4": (0.9, 634), "5+": (1.12, 894)}
    lengths = {"1-4": (0.75, 301), "5-9": (0.9, 420), "10-19": (1.0, 402), "20-49": (1.15, 360)}
    tens = {str(n): (rare + (2.2 - rare) * (n / 10) ** 3, 60 + 22 * n) for n in range(1, 11)}
    lists = {
        "coverage@10": 0.04 + 3 * cold,
        "gini@10": 0.99 - 2 * level,
        "novelty@10": 9 + 60 * cold,
    }
    return {
        "all": deep(level, 1616),
        "cold_item": deep(cold, 269),
        "warm_item": deep(level * 1.12, 1402),
        "cold_in_domain": deep(level * 0.62, 88),
        "domain": {"food": deep(level * 0.7, 786), "kitchen": deep(level * 1.284, 830)},
        **{
            part: {band: deep(level * by, pairs) for band, (by, pairs) in cut.items()}
            for part, cut in (
                ("events_in_domain", bands),
                ("history_length", lengths | {"50+": (1.3, 133)}),
                ("item_popularity_decile", tens),
            )
        },
        "lists": {"food": lists, "kitchen": lists | {"coverage@10": 0.03 + 2 * cold}},
    }


def whole_study() -> dict[str, Any]:
    def transfer(together: float, alone: float, width: float, pairs: int) -> dict[str, Any]:
        difference = round(together - alone, 5)
        interval = compared(difference, difference - width, difference + width)
        levels = {"together": together, "alone": alone, "popularity": 0.8 * alone}
        return interval | levels | {"pairs": pairs}

    def variant(name: str, ndcg: float, seconds: float, width: float) -> dict[str, Any]:
        lost = round(0.0813 - ndcg, 5)
        comparison = compared(lost, lost - width, lost + width)
        return {"name": name, "ndcg@10": ndcg, "seconds": seconds, "comparison": comparison}

    def shifted(before: float, after: float, popularity: float) -> dict[str, Any]:
        lost, lead = round(before - after, 5), round(after - popularity, 5)
        return {
            "pairs": 786,
            "before": before,
            "after": after,
            "popularity": popularity,
            "window": "popularity_7d",
            "lost": compared(lost, lost - 0.003, lost + 0.003),
            "lead": compared(lead, lead - 0.004, lead + 0.004),
        }

    def shift(name: str, domain: str | None, after: float) -> dict[str, Any]:
        parts = {"food": shifted(0.0569, after, 0.05), "kitchen": shifted(0.1044, 0.104, 0.09)}
        whole = shifted(0.0813, after, 0.0642)
        return {"name": name, "domain": domain, "seconds": 66.0, "all": whole, "domains": parts}

    return {
        "shifts": [shift("wrong", None, 0.0761), shift("scarce", "food", 0.0433)],
        "seeds": {
            "seeds": [17, 18, 19],
            "ndcg@10": {"values": [0.0813, 0.0806, 0.0821], "mean": 0.0813, "deviation": 0.0008},
            "hr@10": {"values": [0.1714, 0.1699, 0.1731], "mean": 0.1715, "deviation": 0.0016},
        },
        "ablation": [
            variant("without text", 0.0741, 88.0, 0.004),
            variant("without ids", 0.0806, 131.0, 0.002),
            variant("without time", 0.0212, 190.4, 0.009),
            variant("without the other domains", 0.0784, 152.9, 0.0021),
        ],
        "transfer": {
            "food": {
                "all": transfer(0.0569, 0.0552, 0.0021, 786),
                "0": transfer(0.0402, 0.0313, 0.012, 41),
                "1-4": transfer(0.0533, 0.0501, 0.0026, 340),
                "5+": transfer(0.0611, 0.0618, 0.003, 405),
            },
            "kitchen": {
                "all": transfer(0.1044, 0.1003, 0.003, 830),
                "0": transfer(0.0711, 0.0498, 0.013, 47),
                "1-4": transfer(0.0993, 0.0951, 0.0036, 294),
                "5+": None,
            },
        },
        "backbone": [
            {"name": "untrained backbone", "ndcg@10": 0.0644, "seconds": 21.4},
            {"name": "frozen backbone, trained head", "ndcg@10": 0.0813, "seconds": 154.0},
            {
                "name": "fine-tuned backbone: all",
                "ndcg@10": 0.0829,
                "seconds": 2411.0,
                "trained": 22_713_216,
                "items_read": 81_000,
                "comparison": {"difference": 0.0016, "low": -0.0002, "high": 0.0034},
            },
        ],
    }


def whole_metrics() -> dict[str, Any]:
    """Return all that metrics.json can hold, made up after a real night."""
    small, own = small_metrics(), LEVELS["model"][0]
    leads = {
        name: compared(own - level, (own - level) * 0.7 - 0.003, (own - level) * 1.3 + 0.003)
        for name, (level, _, _) in LEVELS.items()
        if name != "model"
    }
    weeks = [f"2014-{month:02d}-{day:02d}" for month, day in ((3, 24), (3, 31), (4, 7), (4, 14))]
    domains = [
        {"name": "food", "start": 0, "stop": 11_837, "events": 76_163, "users": 7090},
        {"name": "kitchen", "start": 11_837, "stop": 28_095, "events": 79_962, "users": 7097},
    ]
    return small | {
        "ks": list(KS),
        "protocol": "time",
        "holdout": small["holdout"] | {"start": "2014-04-09", "stop": "2014-04-23", "pairs": 1616},
        "systems": {name: whole_system(name) for name in LEVELS},
        "comparison": leads,
        "comparison_by_domain": {"food": leads, "kitchen": leads},
        "comparison_cold_item": {"untrained_backbone": compared(0.0149, 0.0031, 0.0268)},
        "baselines": {name: {"seconds": s} for name, (_, _, s) in LEVELS.items() if s is not None},
        "study": whole_study(),
        "calibration": small_calibration(),
        "data": small["data"]
        | {
            "domains": domains,
            "events_by_week": {
                "food": dict(zip(weeks, (4012, 3801, 4417, 2210), strict=True)),
                "kitchen": dict(zip(weeks, (4530, 4218, 3999, 1987), strict=True)),
            },
        },
    }


def whole_sample(users: int = 12) -> list[dict[str, Any]]:
    """Return users with long titles, of whom every second has found something."""
    words = ("Dark roast coffee beans, whole, 1 kg", "Cast iron pan 26 cm", "Oat bars, box of 12")
    missed = {"domain": "kitchen", "item_id": "B00KXYZ", "title": "Bread knife, serrated, steel"}
    sample = []
    for n in range(users):
        titles = [f"{words[(n + m) % 3]} No {n}-{m}" for m in range(10)]
        items = [{"item_id": f"i{m}", "title": title} for m, title in enumerate(titles)]
        hits = {"food": 3 if n % 2 else None, "kitchen": None}
        lists = {
            domain: [
                item | {"score": 3 - m / 7, "is_next": m == hit} for m, item in enumerate(items)
            ]
            for domain, hit in hits.items()
        }
        history = [
            item | {"date": f"2014-03-{m + 1:02d}", "domain": "food"}
            for m, item in enumerate(items[:8])
        ]
        found = [items[3] | {"domain": "food"}] if n % 2 else []
        user = {"user_id": f"A{n:02d}QX7WZ4R{n}PLM", "history": history, "lists": lists}
        sample.append(user | {"next": [*found, missed]})
    return sample
