"""Full-catalogue ranking: every user's exact top k and target rank, and their metrics."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.mask_item import mask_item_of, num_ids, with_mask_item
from pixelrec_jax.data.pipeline import ItemStore
from pixelrec_jax.data.queries import Queries, ranking_queries
from pixelrec_jax.data.split import Holdout, Split, training_counts
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.data.types import Array, History, Score
from pixelrec_jax.evaluation.catalog import CatalogEncoder, with_rows
from pixelrec_jax.evaluation.lists import Retrieved
from pixelrec_jax.evaluation.metrics import random_metrics, ranking_metrics
from pixelrec_jax.evaluation.result import Groups, Report
from pixelrec_jax.evaluation.retrieval import retrieve
from pixelrec_jax.evaluation.screening import num_rescored
from pixelrec_jax.parallel.sharding import (
    CATALOG_SPEC,
    make_global_arrays,
    make_replicated_arrays,
    shapes,
)
from pixelrec_jax.parallel.tables import take_rows
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.users.encoder import dot_product


@dataclass(frozen=True)
class Ranking:
    """The result of ranking the catalogue for Q users.

    Attributes:
      user: int32[Q], indices of users, ascending.
      target: int32[Q], the item held out of each user.
      rank: int32[Q], the target's place; 1 is the best, that of a masked target is
        `lists.UNRANKED`.
      top_ids: int32[Q, k], items, best first.
      top_scores: float32[Q, k], their scores.
      num_candidates: int[Q], how many items the target competed with, itself included; 0 where the
        target was masked because the user had seen it before: no ranking can hit it.
    """

    user: np.ndarray
    target: np.ndarray
    rank: np.ndarray
    top_ids: np.ndarray
    top_scores: np.ndarray
    num_candidates: np.ndarray


class Evaluator:
    """Ranks the catalogue for every user; all evaluations share the compiled functions."""

    def __init__(
        self,
        model: Recommender,
        split: Split,
        store: ItemStore | None,
        resident: Resident,
        config: ConfigDict,
        mesh: Mesh,
    ):
        """Takes what an `Experiment` holds; `store` is None for models that read only ids."""
        self.split, self.resident = split, resident
        self.config, self.mesh = config, mesh
        self.num_items = split.interactions.num_items
        self.k = min(max(config.eval.ks), self.num_items - 1)
        self.batch_size = -(-config.eval.batch_size // mesh.size) * mesh.size
        self._mask_item = mask_item_of(task_of(config), self.num_items)
        self._time_unit = task_of(config).time_unit if model.user_encoder.needs_time else None
        self.catalog = CatalogEncoder(
            model, store, resident, config, mesh, num_items=num_ids(self.num_items, self._mask_item)
        )
        self.source = self.catalog.source
        rescored = num_rescored(
            model.user_encoder, mesh.devices.flat[0].platform, self.source.rows_per_shard
        )

        def rank(
            variables: dict, catalog: Float[jax.Array, "G R E"], queries: Queries
        ) -> Retrieved:
            flat = catalog.reshape(-1, catalog.shape[-1])
            vector = take_rows(flat, queries.history, mesh, rows=CATALOG_SPEC, batch=CATALOG_SPEC)
            history = History(
                item_embeddings=vector,
                item=queries.history,
                user=queries.user,
                time=queries.time,
            )
            variables = with_rows(variables, model.embedding_lookups(user=queries.user), mesh)
            query = nn.apply(Recommender.encode_users, model)(variables, history)[:, -1]
            score = partial(nn.apply(Recommender.score, model), {})
            return self._retrieve(
                score, query, catalog, queries.seen, queries.target, rescored=rescored
            )

        def rank_by_counts(
            counts: Float[Array, "G R 1"], seen: Int[Array, "Q S"], target: Int[Array, " Q"]
        ) -> Retrieved:
            query = jnp.ones((len(target), 1))
            return self._retrieve(dot_product, query, counts, seen, target)

        self._rank = jax.jit(rank)
        self._propagate = jax.jit(partial(model.propagate, mesh=mesh))
        self._rank_by_counts = jax.jit(rank_by_counts)

    @cached_property
    def training_counts(self) -> Int[np.ndarray, " N"]:
        """How often each item occurs in the training data, int64."""
        return training_counts(self.split)

    def _retrieve(
        self,
        score: Score,
        query: Float[Array, "Q D"],
        catalog: Float[Array, "G R E"],
        seen: Int[Array, "Q S"],
        target: Int[Array, " Q"],
        *,
        rescored: int = 0,
    ) -> Retrieved:
        return retrieve(
            score,
            query,
            catalog,
            seen,
            target,
            self.k,
            num_items=self.num_items,
            mesh=self.mesh,
            chunk=self.config.eval.chunk,
            rescored=rescored,
        )

    def encode_catalog(
        self, variables: dict, advance: Callable[[int], None] = lambda _: None
    ) -> Float[Array, "G R E"]:
        """Returns every item's vector, float32, row-sharded over all devices."""
        return self.catalog.encode(variables, advance)

    def lower(self, variables: dict) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """Returns two lowered programs: one encodes a chunk of the catalogue, one ranks a batch.

        Nothing is computed: `variables` are shapes with shardings. The devices of the mesh may be
        those of a topology.
        """
        queries, _ = next(self._queries("test"))
        q = shapes(queries, self.mesh)
        catalog = self.catalog.shape(variables)
        return (
            self.catalog.lower(variables),
            self._rank.lower(variables, catalog, q),
        )

    def parts(self, holdout: Holdout) -> int:
        """Returns in how many parts `rank` works, as it tells `advance`."""
        return len(self.source) + -(-len(self.split.users(holdout)) // self.batch_size)

    def rank(
        self, variables: dict, holdout: Holdout, advance: Callable[[int], None] = lambda _: None
    ) -> Ranking:
        """Returns the ranking of the whole catalogue for every user with a target in a holdout.

        `advance` gets 1 after each of its `parts`.
        """
        if self.resident.graph is not None:
            variables = self._propagate(variables, self.resident)
        catalog = self.encode_catalog(variables, advance)
        return self._collect(holdout, lambda q: self._rank(variables, catalog, q), advance)

    def rank_by_popularity(self, holdout: Holdout) -> Ranking:
        """Returns the ranking by popularity: the number of an item's training interactions."""
        source = self.source
        counts = np.zeros((source.num_shards, source.rows_per_shard, 1), np.float32)
        counts.reshape(-1)[: self.num_items] = self.training_counts
        counts = make_global_arrays(counts[source.local_shards], self.mesh, CATALOG_SPEC)
        return self._collect(holdout, lambda q: self._rank_by_counts(counts, q.seen, q.target))

    def _queries(self, holdout: Holdout) -> Iterator[tuple[Queries, int]]:
        """Yields batches of queries of one size, the last one filled up, and their real number.

        Users come in the order of their targets: then `retrieve` finds those of a batch in a few
        chunks.
        """
        users = self.split.users(holdout)
        target = self.split.interactions.items[self.split.targets[holdout][users]]
        users = users[np.argsort(target, kind="stable")]
        for start in range(0, len(users), self.batch_size):
            chosen = users[start : start + self.batch_size]
            filled = np.pad(chosen, (0, self.batch_size - len(chosen)), mode="edge")
            length = self.config.task.history_length
            queries = ranking_queries(
                self.split,
                filled,
                holdout,
                history_length=length,
                time_unit=self._time_unit,
            )
            yield with_mask_item(queries, self._mask_item), len(chosen)

    def _collect(
        self,
        holdout: Holdout,
        rank_batch: Callable,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Ranking:
        """Returns the rankings of all batches; raises `UserError` if a score is not finite."""
        batches = []
        for queries, real in self._queries(holdout):
            found = jax.device_get(rank_batch(make_replicated_arrays(queries, self.mesh)))
            if np.isposinf(found.scores).any():
                raise UserError(
                    "the model's scores are not finite numbers; lower optim.lr or set "
                    "optim.clip_norm, in a new workdir"
                )
            columns = (queries.user, queries.target, found.rank, found.ids, found.scores)
            columns += (self._count_candidates(queries),)
            batches.append([column[:real] for column in columns])
            advance(1)
        columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
        order = np.argsort(columns[0])  # by user
        return Ranking(*(column[order] for column in columns))

    def _count_candidates(self, queries: Queries) -> Int[np.ndarray, " Q"]:
        distinct = np.count_nonzero(np.diff(np.sort(queries.seen, axis=1), prepend=0), axis=1)
        repeated = np.any(queries.seen == queries.target[:, None], axis=1)
        return np.where(repeated, 0, self.num_items - 1 - distinct)

    def metrics(self, ranking: Ranking) -> Groups:
        """Returns the metrics over all users ("all") and over those with a cold target ("cold")."""
        cold = self._is_cold(ranking.target)
        return {
            "all": ranking_metrics(ranking.rank, self.config.eval.ks),
            "cold": ranking_metrics(ranking.rank[cold], self.config.eval.ks),
        }

    def report(self, ranking: Ranking, holdout: Holdout) -> Report:
        """Returns a model's metrics beside those of the rankings by popularity and by chance."""
        cold = self._is_cold(ranking.target)
        num_candidates, ks = ranking.num_candidates, self.config.eval.ks
        return {
            "split": holdout,
            "users": {"all": len(cold), "cold": int(cold.sum())},
            "repeated_targets": int(np.count_nonzero(num_candidates == 0)),
            "items": self.num_items - 1,
            "cold_threshold": self.config.eval.cold_threshold,
            "model": self.metrics(ranking),
            "popularity": self.metrics(self.rank_by_popularity(holdout)),
            "random": {
                "all": random_metrics(num_candidates, ks),
                "cold": random_metrics(num_candidates[cold], ks),
            },
        }

    def _is_cold(self, target: Int[np.ndarray, " Q"]) -> Bool[np.ndarray, " Q"]:
        return self.training_counts[target] <= self.config.eval.cold_threshold
