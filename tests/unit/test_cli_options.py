"""Every setting has an option of its own name, and what is given arrives as the setting."""

import inspect

import pytest

from snugtune.cli.fit import NOT_SETTINGS, fit
from snugtune.cli.options import SHORTHANDS, settings
from snugtune.config import FitConfig, make_config


def test_fit_offers_every_setting_under_its_name():
    offered = set(inspect.signature(fit).parameters) - NOT_SETTINGS - SHORTHANDS - {"context"}
    assert offered == set(FitConfig.model_fields)


def test_what_is_left_out_keeps_its_default():
    assert settings({"train": "a.csv", "r": None, "text": None}) == {"train": "a.csv"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"target_modules": "query, value"}, {"target_modules": ("query", "value")}),
        ({"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
        ({"layers_to_transform": "0,1"}, {"layers_to_transform": (0, 1)}),
        ({"init_lora_weights": "True"}, {"init_lora_weights": True}),
        ({"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa"}),
        ({"text": ["a", "b"]}, {"text": ("a", "b")}),
        ({"label": ["a"]}, {"label": "a"}),
        ({"label_levels": "Product, Issue"}, {"label_levels": ("Product", "Issue")}),
        (
            {"label": ["a", "b"], "multi_label": True},
            {"label": ("a", "b"), "problem_type": "multi_label_classification", "metric": "f1_micro"},
        ),
        ({"label_separator": ";"}, {"problem_type": "multi_label_classification"}),
    ],
)
def test_lists_and_words_become_settings(given, expected):
    config = make_config({"train": "a.csv", **settings(given)})
    for key, value in expected.items():
        assert getattr(config, key) == value
