"""The first look at a table counts the labels that a fit will have."""

import polars as pl
import pytest

from snugtune.config import make_config
from snugtune.train.survey import survey


@pytest.mark.parametrize(("merged", "labels"), [(True, 2), (False, 4)])
def test_spellings_are_merged_as_in_a_fit(tmp_path, merged, labels):
    frame = pl.DataFrame(
        {"Text": [f"text {i}" for i in range(5)], "Label": ["Fees", "fees ", "FEES", "Loan", None]}
    )
    frame.write_csv(tmp_path / "table.csv")
    config = make_config({"train": str(tmp_path / "table.csv"), "merge_label_variants": merged})
    assert survey(config).labels == labels
    assert len(survey(config).lengths) == 4
