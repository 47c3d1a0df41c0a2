"""Which unlabelled texts to label next: query strategies of active learning on features and probabilities.

``margin`` asks for the texts whose two most probable classes are closest (Scheffer, Decomain and Wrobel
2001, Active Hidden Markov Models for Information Extraction). ``badge`` asks for a diverse batch of texts
that would move the last layer far (Ash et al. 2020, Deep Batch Active Learning by Diverse, Uncertain Gradient
Lower Bounds, arXiv:1906.03671). ``typicality`` asks for the most typical text of each cluster that has no
label yet and needs no classifier (Hacohen, Dekel and Weinshall 2022, Active Learning on a Budget: Opposite
Strategies Suit High and Low Budgets, arXiv:2202.02794). ``random`` is what they have to beat.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from snugtune.evaluate.calibration import softmax
from snugtune.evaluate.label_quality import grouped_folds
from snugtune.evaluate.metrics import log_loss

Strategy = Literal["margin", "badge", "typicality", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

TYPICALITY_NEIGHBOURS = 20
"""Of a text's nearest ones in its cluster, the mean distance to which says how typical it is (Hacohen et al.
2022, section 3.2)."""

MOST_CLUSTERS = 500
SMALLEST_CLUSTER = 5
"""Clusters of fewer texts are asked last; both are those of the authors' own code."""

KMEANS_ROWS = 20_000
"""More rows are clustered in mini-batches."""

INVERSE_REGULARISATIONS = (0.0025, 0.025, 0.25)
"""scikit-learn's C on standardised features that held-out labelled rows choose from, as for the probe that a
fit starts from (``train/probe.py``)."""

MAX_ITERATIONS = 200

FEW_A_CLASS = 4
"""Labelled texts a class below which ``auto`` asks for typical ones, and from which on by ``badge``."""

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Chosen:
    """Texts to label, the most wanted first.

    ``rows`` (M,) are indices into the pool, ``score`` (M,) is what the strategy saw in each: the margin of
    the two most probable classes (small is wanted), the length of the gradient of the last layer, the
    typicality, or 0 where they were drawn at random. ``cluster_size`` (M,) is set by ``typicality`` alone.
    """

    rows: Ids
    score: NDArray[np.float64]
    cluster_size: Ids | None = None


def by_labels_spent(labelled: int, n_classes: int) -> Strategy:
    """What ``auto`` stands for, with ``labelled`` texts of ``n_classes`` classes (of none: 0).

    Where the switch lies was read off training rows that no strategy could choose, never off a test file
    (``benchmarks/active.py`` and ``decisions/0035-fewer-labels.md``).
    """
    return "typicality" if n_classes < 2 or labelled < FEW_A_CLASS * n_classes else "badge"


@dataclass(frozen=True)
class Learner:
    """A multinomial logistic regression on standardised features: what few labels teach a linear layer.

    ``weight`` is (K, H), ``bias`` (K,), ``mean`` and ``std`` (H,).
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def inputs(self, features: Floats) -> NDArray[np.float32]:
        """Standardised features (N, H): what the linear layer is given."""
        return np.asarray((features - self.mean) / self.std, dtype=np.float32)

    def probabilities(self, features: Floats) -> NDArray[np.float64]:
        """Probabilities (N, K) of texts with ``features`` (N, H)."""
        return softmax(self.inputs(features) @ self.weight.T + self.bias)


def learn(features: Floats, y: Ids, *, seed: int = 0) -> Learner:
    """Fit on N texts of ``features`` (N, H) and class ids ``y`` (N,), each of 0..K-1 among them, K > 1.

    A fifth of them chooses the penalty by log loss; then all of them are learned from. Where a class would
    have no text left to learn from, the weakest penalty is taken.
    """
    held_out = grouped_folds(y, np.arange(len(y)), seed=seed) == 0
    rest = ~held_out
    C = INVERSE_REGULARISATIONS[-1]
    if held_out.any() and len(np.unique(y[rest])) == len(np.unique(y)):
        losses = []
        for choice in INVERSE_REGULARISATIONS:
            learner = _fit(features[rest], y[rest], choice)
            losses.append(log_loss(y[held_out], learner.probabilities(features[held_out])))
            if len(losses) > 1 and losses[-1] > losses[-2]:
                break
        C = INVERSE_REGULARISATIONS[int(np.argmin(losses))]
    return _fit(features, y, C)


def _fit(features: Floats, y: Ids, C: float) -> Learner:
    mean, std = (
        features.mean(axis=0, dtype=np.float64),
        np.maximum(features.std(axis=0, dtype=np.float64), 1e-6),
    )
    model = LogisticRegression(C=C, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # That it did not quite converge, or that classes are many for so few rows.
        warnings.simplefilter("ignore")
        model.fit(((features - mean) / std).astype(np.float32), y)
    weight, bias = np.asarray(model.coef_, np.float64), np.asarray(model.intercept_, np.float64)
    if len(weight) == 1:  # scikit-learn keeps one row for two classes: the second against the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Learner(weight, bias, mean, std)


def choose(
    strategy: Strategy,
    count: int,
    features: Floats,
    probabilities: Floats | None = None,
    labelled: Floats | None = None,
    *,
    seed: int = 0,
) -> Chosen:
    """At most ``count`` distinct rows of a pool of N texts by ``strategy``.

    ``features`` (N, H) are the pool's, ``labelled`` (L, H) those of the texts that have a label (None: none
    has), ``probabilities`` (N, K) the classifier's for the pool; ``typicality`` and ``random`` need none.

    Raises:
        ValueError: ``margin`` or ``badge`` is given no probabilities.
    """
    count = min(count, len(features))
    if strategy == "random":
        rows = np.random.default_rng(seed).permutation(len(features))[:count].astype(np.int64)
        return Chosen(rows, np.zeros(len(rows)))
    if strategy == "typicality":
        return by_typicality(features, count, labelled, seed=seed)
    if probabilities is None:
        raise ValueError(f"{strategy} needs the probabilities of a classifier")
    if strategy == "margin":
        return by_margin(probabilities, count)
    return by_badge(features, probabilities, count, seed=seed)


def by_margin(probabilities: Floats, count: int) -> Chosen:
    """The ``count`` rows of ``probabilities`` (N, K) whose two largest are closest."""
    margins = margin(probabilities)
    rows = np.argsort(margins, kind="stable")[:count].astype(np.int64)
    return Chosen(rows, margins[rows])


def margin(probabilities: Floats) -> NDArray[np.float64]:
    """The largest probability of each row of (N, K) less the second largest: (N,)."""
    if probabilities.shape[1] < 2:
        return np.asarray(probabilities[:, 0], dtype=np.float64)
    two = np.partition(probabilities, -2, axis=1)[:, -2:]
    return np.asarray(two[:, 1] - two[:, 0], dtype=np.float64)


def by_badge(features: Floats, probabilities: Floats, count: int, *, seed: int = 0) -> Chosen:
    """``count`` rows by k-means++ seeding on gradient embeddings (Ash et al. 2020, algorithm 1).

    The gradient of the log loss of row i with respect to the last layer, if its most probable class were its
    label, is the outer product of ``probabilities[i]`` less the indicator of that class, (K,), and its
    features with a 1 for the bias, (H + 1,). Of two such products only inner products are needed, and those
    are products of the factors' inner products, so no vector of K (H + 1) numbers is ever made. As in the
    authors' code the first row is the one of the longest gradient; each next one is drawn with probability
    proportional to its squared distance from the nearest row already chosen (Arthur and Vassilvitskii 2007).
    """
    errors = np.array(probabilities)
    errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1.0
    inputs = np.asarray(features)
    squared = np.square(errors).sum(axis=1, dtype=np.float64) * (
        1.0 + np.square(inputs).sum(axis=1, dtype=np.float64)
    )
    rng = np.random.default_rng(seed)
    rows: list[int] = []
    distance = np.full(len(features), np.inf)
    free = np.ones(len(features), dtype=bool)
    for _ in range(count):
        row = int(squared.argmax()) if not rows else _drawn(distance, free, rng)
        rows.append(row)
        free[row] = False
        inner = (errors @ errors[row]).astype(np.float64) * (1.0 + inputs @ inputs[row])
        distance = np.minimum(distance, np.maximum(squared + squared[row] - 2 * inner, 0.0))
        distance[row] = 0.0
    chosen = np.array(rows, dtype=np.int64)
    return Chosen(chosen, np.sqrt(squared[chosen]))


def _drawn(distance: NDArray[np.float64], free: NDArray[np.bool_], rng: np.random.Generator) -> int:
    """A free row with probability proportional to its squared ``distance``; any free one if all are 0."""
    weights = np.where(free, distance, 0.0)
    total = weights.sum()
    weights, total = (weights, total) if total > 0 else (free.astype(np.float64), float(free.sum()))
    return int(rng.choice(len(weights), p=weights / total))


def by_typicality(features: Floats, count: int, labelled: Floats | None = None, *, seed: int = 0) -> Chosen:
    """The most typical row of each of ``count`` clusters, of those without a label first (TPC with k-means).

    Pool (N, H) and ``labelled`` texts (L, H), scaled to length 1, are put into L + ``count`` clusters, at
    most ``MOST_CLUSTERS``. Clusters come in turn by how few of their texts are labelled or chosen, then by
    how large they are; what is taken of one is the row with the least mean distance to its nearest in it.
    """
    pool = _unit(features)
    known = _unit(labelled) if labelled is not None else np.empty((0, pool.shape[1]), dtype=pool.dtype)
    cluster = _clusters(np.concatenate([known, pool]), len(known) + count, seed)
    of_known, of_pool = cluster[: len(known)], cluster[len(known) :]
    K = int(cluster.max(initial=0)) + 1
    sizes, taken = np.bincount(of_pool, minlength=K), np.bincount(of_known, minlength=K)
    queues: dict[int, tuple[list[int], list[float]]] = {}
    left = sizes.copy()
    rows, scores, of = [], [], []
    for _ in range(min(count, len(pool))):
        # The last key of lexsort decides first.
        order = np.lexsort((-sizes, taken, sizes < SMALLEST_CLUSTER, left == 0))
        k = int(order[0])
        if k not in queues:
            queues[k] = _typical_first(pool, np.flatnonzero(of_pool == k))
        place = int(sizes[k] - left[k])
        rows.append(queues[k][0][place])
        scores.append(queues[k][1][place])
        of.append(int(sizes[k]))
        left[k] -= 1
        taken[k] += 1
    return Chosen(np.array(rows, dtype=np.int64), np.array(scores), np.array(of, dtype=np.int64))


def _unit(features: Floats) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths, 1e-12), dtype=np.float32)


def _clusters(rows: NDArray[np.float32], wanted: int, seed: int) -> Ids:
    """A cluster id for each of ``rows`` (N, H), of ``wanted`` clusters at most."""
    K = max(1, min(wanted, MOST_CLUSTERS, len(np.unique(rows, axis=0))))
    made = MiniBatchKMeans if len(rows) > KMEANS_ROWS else KMeans
    more = {"batch_size": 5000} if made is MiniBatchKMeans else {}
    return np.asarray(made(n_clusters=K, n_init=1, random_state=seed, **more).fit_predict(rows), np.int64)


def _typical_first(pool: NDArray[np.float32], members: Ids) -> tuple[list[int], list[float]]:
    """The ``members`` of a cluster, the most typical first, and how typical each is: 1 / mean distance."""
    if len(members) == 1:
        return members.tolist(), [0.0]
    k = min(TYPICALITY_NEIGHBOURS, len(members) - 1)
    found, _ = NearestNeighbors(n_neighbors=k).fit(pool[members]).kneighbors()  # without the row itself
    typical = 1.0 / np.maximum(found.mean(axis=1), 1e-12)
    order = np.argsort(-typical, kind="stable")
    return members[order].tolist(), typical[order].tolist()
