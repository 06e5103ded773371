"""Which worker computes which rows: pure arithmetic on token counts."""

import heapq
from collections.abc import Sequence

import numpy as np

from towpath.data.batch import ATTENTION_CROSSOVER, Batch


def deal(costs: Sequence[float] | np.ndarray, workers: int) -> np.ndarray:
    """The worker of each item: the costliest first, each to the worker with the least to do."""
    rank = np.zeros(len(costs), np.int64)
    loads = [(0.0, worker) for worker in range(workers)]
    for item in np.argsort(-np.asarray(costs, float), kind="stable"):
        load, worker = heapq.heappop(loads)
        rank[item] = worker
        heapq.heappush(loads, (load + float(costs[item]), worker))
    return rank


def deal_rows(batch: Batch, workers: int) -> np.ndarray:
    """The worker of each group of rows. Groups with the same prompt stay together, since a prompt is read once for
    all, unless the work divides better without that."""
    sizes = np.array(batch.sizes or [1] * len(batch))
    starts = np.cumsum(sizes) - sizes
    tokens = np.array([len(row.ids) for row in batch.rows], float)
    costs = np.add.reduceat(tokens * (1 + tokens / ATTENTION_CROSSOVER), starts) if len(batch) else tokens
    prompts: dict[bytes, int] = {}
    bundle = np.array([prompts.setdefault(batch.rows[start].prompt, len(prompts)) for start in starts])
    together = deal(np.bincount(bundle, costs), workers)[bundle]
    apart = deal(costs, workers)
    # a prompt that two workers read costs one of them about as much as the share of the prompt in its rows
    return together if _longest(costs, together, workers) <= 1.1 * _longest(costs, apart, workers) else apart


def _longest(costs: np.ndarray, rank: np.ndarray, workers: int) -> float:
    return float(np.bincount(rank, costs, workers).max()) if len(costs) else 0.0


def rows_of_groups(batch: Batch, groups: np.ndarray) -> np.ndarray:
    """The numbers of the rows of some groups, in the order in which `Batch.take` gives them."""
    sizes = batch.sizes or (1,) * len(batch)
    starts = np.cumsum((0, *sizes)).tolist()
    rows = [number for g in groups.tolist() for number in range(starts[g], starts[g + 1])]
    return np.array(rows, np.int64)
