"""Query strategies: each does what its paper says, on features small enough to know the answer."""

import numpy as np
import pytest

from snugtune.evaluate.selection import (
    FEW_A_CLASS,
    STRATEGIES,
    by_badge,
    by_labels_spent,
    by_margin,
    by_typicality,
    choose,
    learn,
    margin,
)


def blobs(sizes, *, seed=0, spread=0.05):
    """Rows around unit vectors, ``sizes[k]`` around the k-th, and the blob of each."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(len(sizes), 8)[of] + spread * rng.normal(size=(len(of), 8)), of


def test_margin_takes_the_two_largest():
    p = np.array([[0.5, 0.3, 0.2], [0.4, 0.39, 0.21], [0.1, 0.1, 0.8]])
    assert margin(p) == pytest.approx([0.2, 0.01, 0.7])
    assert by_margin(p, 2).rows.tolist() == [1, 0]
    assert by_margin(p, 2).score == pytest.approx([0.01, 0.2])


def gradient_embeddings(features, probabilities):
    """The vectors of Ash et al. themselves, written out: (N, K * (H + 1))."""
    made = []
    for x, p in zip(features, probabilities, strict=True):
        error = p.copy()
        error[p.argmax()] -= 1.0
        made.append(np.outer(error, [*x, 1.0]).ravel())
    return np.array(made)


def kmeans_plus_plus(vectors, count, seed):
    """k-means++ from the longest vector, by the definition, with whole vectors."""
    rng = np.random.default_rng(seed)
    rows = [int(np.square(vectors).sum(axis=1).argmax())]
    while len(rows) < count:
        squared = np.square(vectors[:, None] - vectors[rows]).sum(axis=2).min(axis=1)
        squared[rows] = 0.0
        rows.append(int(rng.choice(len(vectors), p=squared / squared.sum())))
    return rows


@pytest.mark.parametrize("seed", range(5))
def test_badge_is_kmeans_plus_plus_on_gradient_embeddings(seed):
    rng = np.random.default_rng(seed)
    features, probabilities = rng.normal(size=(40, 5)), rng.dirichlet(np.ones(4), size=40)
    vectors = gradient_embeddings(features, probabilities)
    found = by_badge(features, probabilities, 12, seed=seed)
    assert found.rows.tolist() == kmeans_plus_plus(vectors, 12, seed)
    assert found.score == pytest.approx(np.linalg.norm(vectors[found.rows], axis=1))


def test_badge_does_not_ask_the_same_twice():
    features = np.repeat(np.eye(3), 5, axis=0)
    probabilities = np.tile([0.5, 0.3, 0.2], (15, 1))
    rows = by_badge(features, probabilities, 3).rows
    assert len(set(rows // 5)) == 3
    assert sorted(by_badge(features, probabilities, 15).rows.tolist()) == list(range(15))


def test_typicality_takes_the_middle_of_every_cluster_the_largest_first():
    features, of = blobs([40, 20, 10])
    found = by_typicality(features, 3)
    assert of[found.rows].tolist() == [0, 1, 2]
    assert found.cluster_size.tolist() == [40, 20, 10]
    for row in found.rows.tolist():
        own = features[of == of[row]]
        away = np.linalg.norm(own - own.mean(axis=0), axis=1)
        assert np.linalg.norm(features[row] - own.mean(axis=0)) <= np.median(away)


def test_typicality_passes_over_clusters_with_a_label():
    features, of = blobs([40, 20, 10])
    labelled = np.eye(3, 8)[:1]
    found = by_typicality(features, 2, labelled)
    assert 0 not in of[found.rows]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_drawn_depends_on_the_seed_alone(strategy):
    rng = np.random.default_rng(0)
    features, probabilities = rng.normal(size=(60, 4)), rng.dirichlet(np.ones(3), size=60)
    first, again = (choose(strategy, 10, features, probabilities, seed=3).rows for _ in range(2))
    assert first.tolist() == again.tolist()


def test_strategies_that_need_a_classifier_say_so():
    with pytest.raises(ValueError, match="badge needs the probabilities"):
        choose("badge", 3, np.zeros((5, 2)))


def test_a_learner_learns():
    features, y = blobs([30, 30, 30], spread=0.3)
    learner = learn(features, y)
    assert (learner.probabilities(features).argmax(axis=1) == y).mean() > 0.9
    assert learner.probabilities(features).sum(axis=1) == pytest.approx(np.ones(90))


@pytest.mark.parametrize("sizes", [(1, 1), (2, 1), (1, 1, 1)])
def test_a_learner_of_hardly_anything(sizes):
    features, y = blobs(sizes, spread=0.0)
    assert learn(features, y).probabilities(features).argmax(axis=1).tolist() == y.tolist()


def test_auto_goes_from_typical_texts_to_badge():
    assert by_labels_spent(0, 0) == "typicality"
    assert by_labels_spent(50, 1) == "typicality"
    assert by_labels_spent(10 * FEW_A_CLASS - 1, 10) == "typicality"
    assert by_labels_spent(10 * FEW_A_CLASS, 10) == "badge"
