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
from crossrec.data.replay import Histories, slice_users
from crossrec.model.fusion import PARTS, RELATED, WITHOUT_RELATIONS
from crossrec.model.inference import UserState, user_overlaps, user_state
from crossrec.model.overlap import Overlap
from crossrec.model.recommender import Recommender
from crossrec.score.catalogue import Items
from crossrec.score.diverse import TIMES, diversify
from crossrec.score.limits import Group, Rules, Terms, limited_top_k
from crossrec.score.lists import Lists, join_lists
from crossrec.score.narrow import Precision, narrow
from crossrec.score.shortlist import score_pairs
from crossrec.score.steering import Steered, Steering
from crossrec.score.topk import LeftOut, give_places

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
        precision: Precision = "fp32",
        steered: Steered | None = None,
    ) -> None:
        """Put all on the device.

        Args:
            recommender: the model.
            items: the item side.
            domains: of the catalogue.
            candidates: by domain; of domains without them every item may be in lists.
            precision: of the item matrices by which the best are found; scores are fp32.
            steered: how lists are steered; without it by the scores alone.
        """
        self.steered = steered or Steered()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch = USERS_A_GPU_BATCH if self.device.type == "cuda" else USERS_A_BATCH
        self.recommender = recommender.to(self.device).eval()
        self.events = items.events
        self.domains = domains
        self.bounds = [(domain.start, domain.stop) for domain in domains]
        self.index = {domain.name: index for index, domain in enumerate(domains)}
        self.state = items.state.to(self.device)
        sides = self.state.texts_IW, self.state.vectors_IW
        self.narrowed = [narrow(part, precision) for part in sides]
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
            histories: what is known; only events before `day`. All of them count as seen, and of
                items that require something only what the users' traits fulfil is in lists.
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
                left_out = self.rules[name].left_out(part)
                for system in (system for system, asked in wanted if asked == name):
                    scored, steering = self.steered.of(system)
                    terms = self._terms(scored, name, users, overlaps, (seen, left_out))
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
            nothing = rows_BK.new_zeros(0, 2), ()
            terms = self._terms("model", name, users, user_overlaps(users, tables), nothing)
            rows = rows_BK[start : start + self.batch]
            found.append(score_pairs(terms.products, terms.overlaps, rows))
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
            among_new = terms.among(new_N, with_overlaps=RELATED in self.neighbours)
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
        seen = self._seen(histories, self.domains[self.index[name]])
        known = seen, self.rules[name].left_out(histories)
        return self._terms("model", name, users, user_overlaps(users, tables), known)

    def _terms(
        self,
        system: str,
        name: str,
        users: UserState,
        overlaps: Mapping[str, Overlap],
        barred: tuple[Tensor, Sequence[LeftOut]],
    ) -> Terms:
        """Return what adds up to a system's score in a domain; barred: seen pairs, left out."""
        seen_S2, left_out = barred
        index = self.index[name]
        domain = self.domains[index]
        texts_IW = self.state.texts_IW[domain.start : domain.stop]
        narrow_texts, narrow_vectors = (
            part and part.slice(domain.start, domain.stop) for part in self.narrowed
        )
        columns_IR = self.columns[system][name]
        if system not in self.fusions:
            ones_B1 = users.profile_BW.new_ones(len(users.profile_BW), 1)
            products = [(ones_B1, columns_IR)]
            if system != "untrained_backbone":
                return Terms(products, [], seen_S2, left_out)
            products.append((users.profile_BW, texts_IW))
            return Terms(products, [], seen_S2, left_out, (None, narrow_texts))
        vectors_IW = self.state.vectors_IW[domain.start : domain.stop]
        if system == "model" and self.recommender.rating is not None:
            levels_I = self.state.levels_I
            if levels_I is None:
                raise ValueError("the item state of a model of ratings has no levels")
            own_I, offsets_B = levels_I[domain.start : domain.stop], users.offsets_BD[:, index]
            sides = (
                torch.stack([offsets_B, torch.ones_like(offsets_B)], 1),
                torch.stack([torch.ones_like(own_I), own_I], 1),
            )
            products = [(users.queries_BDW[:, index], vectors_IW), sides]
            return Terms(products, [], seen_S2, left_out, (narrow_vectors,))
        side = self.fusions[system].user_side(*users.asked(index))
        weights_BP = dict(zip(PARTS, side.weights_BP.unbind(1), strict=True))
        text_BW = (
            weights_BP["text"].unsqueeze(1) * users.profile_BW
            + weights_BP["text_domain"].unsqueeze(1) * users.domain_profile_BDW[:, index]
        )
        products = [(text_BW, texts_IW), (side.columns_BR, columns_IR)]
        narrowed = [narrow_texts, None]
        if self.has_sequence(system):
            sequence_BW = side.sequence_B.unsqueeze(1) * users.queries_BDW[:, index]
            products.append((sequence_BW, vectors_IW))
            narrowed.append(narrow_vectors)
        weighted = [
            found.weighted(weights_BP[part])
            for part, found in overlaps.items()
            if part in weights_BP
        ]
        fusion = self.fusions[system]
        if RELATED in overlaps and fusion.related is not None and bool(fusion.related.any()):
            by_item_I = fusion.related_weights(self.is_new[name])
            weighted.append(overlaps[RELATED].weighted_by_item(by_item_I))
        return Terms(products, weighted, seen_S2, left_out, narrowed)

    def _seen(self, histories: Histories, domain: DomainRange) -> Tensor:
        inside = (histories.rows >= domain.start) & (histories.rows < domain.stop)
        pairs = np.stack(
            [histories.owners[inside], histories.rows[inside].astype(np.int64) - domain.start], 1
        )
        return torch.from_numpy(pairs).to(self.device)
