"""Histories in, the best items of every domain out; torch only, no Ray and no files.

    scorer = Scorer(model, items, prepared.domains)
    lists = scorer.score(histories, day, domain="shop", system="model", k=50)

Tensor suffixes: B users, D domains, I items, W width, K list length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from crossrec.data.candidates import Candidates
from crossrec.data.histories import DomainRange
from crossrec.data.replay import Histories
from crossrec.model.fusion import PARTS, RELATED, WITHOUT_RELATIONS
from crossrec.model.inference import ItemState, UserState, user_overlaps, user_state
from crossrec.model.overlap import Overlap
from crossrec.model.recommender import Recommender
from crossrec.score.catalogue import Items
from crossrec.score.diverse import TIMES, diversify
from crossrec.score.limits import Group, Rules, Terms, limited_top_k
from crossrec.score.lists import Lists, join_lists
from crossrec.score.shortlist import score_pairs
from crossrec.score.steering import Steered, Steering
from crossrec.score.topk import SparseScores, give_places

USERS_A_BATCH, USERS_A_GPU_BATCH = 256, 1_024
"""Users a forward pass; on a CPU 128 and 512 were slower. Batches never span buckets, so that a
bucket's scores do not depend on its neighbours."""


class Scorer:
    """Holds model and item side on a device; scores any number of histories."""

    def __init__(
        self,
        recommender: Recommender,
        items: Items,
        domains: Sequence[DomainRange],
        candidates: Mapping[str, Candidates] | None = None,
        halved: bool = False,
        steered: Steered | None = None,
    ) -> None:
        """Put all on the device.

        Args:
            recommender: the model.
            items: the item side.
            domains: of the catalogue.
            candidates: by domain; of domains without them every item may be in lists.
            halved: find the best by products of bfloat16.
            steered: how lists are steered; without it by the scores alone.
        """
        self.halved = halved
        self.steered = steered or Steered()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch = USERS_A_GPU_BATCH if self.device.type == "cuda" else USERS_A_BATCH
        self.recommender = recommender.to(self.device).eval()
        self.events = items.events
        self.domains = domains
        self.bounds = [(domain.start, domain.stop) for domain in domains]
        self.index = {domain.name: index for index, domain in enumerate(domains)}
        self.state = ItemState(
            items.state.texts_IW.to(self.device), items.state.vectors_IW.to(self.device)
        )
        self.columns = {
            system: {name: part.to(self.device) for name, part in by_domain.items()}
            for system, by_domain in items.columns.items()
        }
        self.neighbours = {
            kind: {name: table.to(self.device) for name, table in by_domain.items()}
            for kind, by_domain in items.neighbours.items()
        }
        self.prices = {
            name: prices_I.to(self.device) for name, prices_I in self.steered.prices.items()
        }
        self.added = {name: part.to(self.device) for name, part in self.steered.added.items()}
        self.rules = {
            domain.name: Rules.of((candidates or {}).get(domain.name), self.device)
            for domain in domains
        }
        # Of all new items, whatever the rules say.
        self.is_new = {
            domain.name: torch.zeros(domain.stop - domain.start, dtype=torch.bool)
            .index_fill_(0, items.new.get(domain.name, torch.zeros(0, dtype=torch.int64)), True)
            .to(self.device)
            for domain in domains
        }
        self.new = {
            domain.name: self.rules[domain.name].kept(
                items.new.get(domain.name, torch.zeros(0, dtype=torch.int64)).to(self.device)
            )
            for domain in domains
        }
        self.fusions = {
            name: fusion.to(self.device).eval() for name, fusion in items.fusions.items()
        }

    @torch.inference_mode()
    def score(
        self,
        histories: Histories,
        day: int,
        wanted: Sequence[tuple[str, str]],
        k: int,
        new_places: int = 0,
    ) -> dict[tuple[str, str], Lists]:
        """Return the k best unseen items for every (system, domain) that is wanted.

        Args:
            histories: what is known; only events before `day`. All of them count as seen.
            day: the day that is predicted.
            wanted: (system, domain) pairs.
            k: items a list at most.
            new_places: so many of them at least are the best of the items that nobody has touched
                yet, where there are so many; only in lists of a fusion.
        """
        found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {key: [] for key in wanted}
        names = list(dict.fromkeys(name for _, name in wanted))
        scored_as = [self.steered.of(system)[0] for system, _ in wanted]
        with_sequence = any(map(self.has_sequence, scored_as))
        for start in range(0, len(histories.lengths), self.batch):
            part = slice_users(histories, start, start + self.batch)
            users = user_state(
                self.recommender, self.state, part, self.events, self.bounds, day, with_sequence
            )
            for name in names:
                seen = self._seen(part, self.domains[self.index[name]])
                tables = {kind: by_domain[name] for kind, by_domain in self.neighbours.items()}
                overlaps = user_overlaps(users, tables)
                for system in (system for system, asked in wanted if asked == name):
                    scored, steering = self.steered.of(system)
                    products, weighted = self._terms(scored, name, users, overlaps)
                    rules = self.rules[name]
                    terms = Terms(products, weighted, seen, rules.left_out, self.halved)
                    places = new_places * (scored in self.fusions)
                    if steering.is_on:
                        best = self._steered_best(terms, name, (k, places), steering)
                    else:
                        best = self._best(terms, name, k, places)
                    if scored in self.fusions and not steering.is_on:
                        index = self.index[name]
                        best = best[0], self.fusions[scored].published(best[1], index)
                    found[system, name].append((best[0].cpu(), best[1].cpu()))
        return {key: join_lists(parts, k) for key, parts in found.items()}

    @torch.inference_mode()
    def score_items(
        self,
        histories: Histories,
        day: int,
        name: str,
        rows_BK: Tensor,
        weighed_by: Histories | None = None,
    ) -> Tensor:
        """Return the model's scores (B, K) of some items of a domain, before `Fusion.published`.

        weighed_by: a user whose weights all have; default: each their own.
        """
        known = self.events, self.bounds, day, self.has_sequence("model")
        found = []
        for start in range(0, len(histories.lengths), self.batch):
            part = slice_users(histories, start, start + self.batch)
            users = user_state(self.recommender, self.state, part, *known)
            if weighed_by is not None:
                own = user_state(self.recommender, self.state, weighed_by, *known)
                features_BF = own.features_BF.expand_as(users.features_BF)
                counts_BD = own.counts_BD.expand_as(users.counts_BD)
                users = replace(users, features_BF=features_BF, counts_BD=counts_BD)
            tables = {kind: by_domain[name] for kind, by_domain in self.neighbours.items()}
            terms = self._terms("model", name, users, user_overlaps(users, tables))
            found.append(score_pairs(*terms, rows_BK[start : start + self.batch]))
        return torch.cat(found)

    def has_sequence(self, system: str) -> bool:
        """Whether what the sequence says counts; on some data it earns no weight."""
        if system not in ("model", WITHOUT_RELATIONS):
            return False
        return self.recommender.rating is not None or bool(self.fusions[system].sequence != 0)

    def _best(self, terms: Terms, name: str, k: int, new_places: int) -> tuple[Tensor, Tensor]:
        """Return the lists of a domain; the last places are for new items that have none yet."""
        groups, new_N = self.rules[name].groups, self.new[name]
        new = None
        if new_places and len(new_N):
            # Nobody has seen a new item, and it has no neighbours but those it is related to.
            products = [(queries, items_IW[new_N]) for queries, items_IW in terms.products]
            among_new = Terms(products, self._among(terms.overlaps, name), new_N.new_zeros(0, 2))
            of_new = [Group(group.codes_I[new_N], group.most) for group in groups]
            places_BN, scores_BN = (
                limited_top_k(among_new, of_new, new_places)
                if groups
                else among_new.top_k(new_places)
            )
            new = torch.where(places_BN < 0, -1, new_N[places_BN]), scores_BN
        if groups:
            return limited_top_k(terms, groups, k, new)
        best = terms.top_k(k)
        return best if new is None else give_places(best, new)

    def _steered_best(
        self, terms: Terms, name: str, lengths: tuple[int, int], steering: Steering
    ) -> tuple[Tensor, Tensor]:
        """Do what `_best` does, of lists that are steered; lengths: of a list, places for new."""
        k, places = lengths
        ones_B1 = torch.ones(len(terms.products[0][0]), 1, device=self.device)
        if steering.popularity_control:
            paid_I1 = -steering.popularity_control * self.prices[name].unsqueeze(1)
            terms = replace(terms, products=[*terms.products, (ones_B1, paid_I1)])
        if steering.is_edited and name in self.added:
            added_I1 = self.added[name].unsqueeze(1)
            terms = replace(terms, products=[*terms.products, (ones_B1, added_I1)])
        if not steering.diversity:
            return self._best(terms, name, k, places)
        domain = self.domains[self.index[name]]
        texts_IW = self.state.texts_IW[domain.start : domain.stop]
        shortlist = self._best(terms, name, TIMES * k, places)
        return diversify(shortlist, texts_IW, k, steering.diversity, (self.new[name], places))

    @torch.inference_mode()
    def terms(self, histories: Histories, day: int, name: str) -> Terms:
        """Return what makes the model's scores of some users in a domain, as `score` uses it."""
        with_sequence = self.has_sequence("model")
        users = user_state(
            self.recommender, self.state, histories, self.events, self.bounds, day, with_sequence
        )
        tables = {kind: by_domain[name] for kind, by_domain in self.neighbours.items()}
        products, weighted = self._terms("model", name, users, user_overlaps(users, tables))
        seen = self._seen(histories, self.domains[self.index[name]])
        return Terms(products, weighted, seen, self.rules[name].left_out, self.halved)

    def _terms(
        self, system: str, name: str, users: UserState, overlaps: Mapping[str, Overlap]
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Overlap]]:
        """Return the products and overlaps that add up to a system's score in a domain."""
        index = self.index[name]
        domain = self.domains[index]
        texts_IW = self.state.texts_IW[domain.start : domain.stop]
        columns_IR = self.columns[system][name]
        if system not in self.fusions:
            ones_B1 = users.profile_BW.new_ones(len(users.profile_BW), 1)
            products = [(ones_B1, columns_IR)]
            if system == "untrained_backbone":
                products.append((users.profile_BW, texts_IW))
            return products, []
        vectors_IW = self.state.vectors_IW[domain.start : domain.stop]
        if system == "model" and self.recommender.rating is not None:
            offsets_B1 = users.offsets_BD[:, index : index + 1]
            ones_I1 = vectors_IW.new_ones(len(vectors_IW), 1)
            return [(users.queries_BDW[:, index], vectors_IW), (offsets_B1, ones_I1)], []
        side = self.fusions[system].user_side(*users.asked(index))
        weights_BP = dict(zip(PARTS, side.weights_BP.unbind(1), strict=True))
        text_BW = (
            weights_BP["text"].unsqueeze(1) * users.profile_BW
            + weights_BP["text_domain"].unsqueeze(1) * users.domain_profile_BDW[:, index]
        )
        products = [(text_BW, texts_IW), (side.columns_BR, columns_IR)]
        if self.has_sequence(system):
            products.append(
                (side.sequence_B.unsqueeze(1) * users.queries_BDW[:, index], vectors_IW)
            )
        weighted = [
            found.weighted(weights_BP[part])
            for part, found in overlaps.items()
            if part in weights_BP
        ]
        fusion = self.fusions[system]
        if RELATED in overlaps and fusion.related is not None and bool(fusion.related.any()):
            by_item_I = fusion.related_weights(self.is_new[name])
            weighted.append(overlaps[RELATED].weighted_by_item(by_item_I))
        return products, weighted

    def _among(self, overlaps: Sequence[SparseScores], name: str) -> list[SparseScores]:
        """Return what overlaps add to new items: nothing where no relations are known."""
        if RELATED not in self.neighbours:
            return []
        size = len(self.is_new[name])
        return [Overlap(*found).among(self.new[name], size) for found in overlaps]

    def _seen(self, histories: Histories, domain: DomainRange) -> Tensor:
        inside = (histories.rows >= domain.start) & (histories.rows < domain.stop)
        pairs = np.stack(
            [histories.owners[inside], histories.rows[inside].astype(np.int64) - domain.start], 1
        )
        return torch.from_numpy(pairs).to(self.device)


def slice_users(histories: Histories, start: int, stop: int) -> Histories:
    """Return users start..stop-1."""
    offsets = histories.offsets[start : stop + 1]
    events = slice(int(offsets[0]), int(offsets[-1]))
    user_ids = histories.user_ids.slice(start, stop - start)
    values = {name: value[events] for name, value in histories.values.items()}
    rows, days = histories.rows[events], histories.days[events]
    return Histories(user_ids, offsets - offsets[0], rows, days, values)
