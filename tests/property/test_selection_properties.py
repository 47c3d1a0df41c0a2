"""Whatever the pool: rows chosen are distinct, in the pool, as many as asked for or as there are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snugtune.evaluate.selection import STRATEGIES, choose


@settings(max_examples=60)
@given(
    strategy=st.sampled_from(STRATEGIES), pool=st.integers(1, 25), labelled=st.integers(0, 6),
    classes=st.integers(2, 5), count=st.integers(1, 30), kinds=st.integers(1, 25), seed=st.integers(0, 99),
)  # fmt: skip
def test_rows_are_distinct_in_the_pool_and_as_many_as_asked(
    strategy, pool, labelled, classes, count, kinds, seed
):
    rng = np.random.default_rng(seed)
    # With few kinds, many texts are the very same to the model.
    features = rng.normal(size=(kinds, 3))[rng.integers(0, kinds, pool)]
    probabilities = rng.dirichlet(np.ones(classes), size=kinds)[rng.integers(0, kinds, pool)]
    known = rng.normal(size=(labelled, 3)) if labelled else None
    found = choose(strategy, count, features, probabilities, known, seed=seed)
    assert len(found.rows) == len(found.score) == min(count, pool)
    assert len(set(found.rows.tolist())) == len(found.rows)
    assert set(found.rows.tolist()) <= set(range(pool))
    assert np.isfinite(found.score).all()
