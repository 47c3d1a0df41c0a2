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


def test_the_tokenizer_is_not_waited_for_where_the_hub_does_not_answer(tmp_path, monkeypatch):
    pl.DataFrame({"Text": ["a text"], "Label": ["one"]}).write_csv(tmp_path / "table.csv")
    asked = {}

    def fetch(name, **options):
        asked.update(options)
        raise OSError

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fetch)
    monkeypatch.setattr("snugtune.model.known._hub_answers", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found = survey(make_config({"train": str(tmp_path / "table.csv"), "model": "xlm-roberta-base"}))
    assert asked["local_files_only"] is True
    assert not found.exact
