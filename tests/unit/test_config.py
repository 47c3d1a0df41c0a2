import pytest

from snugtune.config import make_config, read_config, write_config
from snugtune.errors import ConfigError


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        make_config({"train": "a.csv", "rank": 8, "r": 0, "method": "magic"})
    message = str(caught.value)
    assert "unknown setting 'rank'" in message
    assert "r=0" in message
    assert "method='magic'" in message


def test_batch_size_is_derived_from_the_transformers_names():
    config = make_config(
        {"train": "a.csv", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    )
    assert config.step_examples == 32


def test_contradicting_batch_sizes_are_refused():
    with pytest.raises(ConfigError, match="contradicts"):
        make_config({"train": "a.csv", "effective_batch_size": 16, "per_device_train_batch_size": 4})


def test_fp16_and_bf16_exclude_each_other():
    with pytest.raises(ConfigError, match="exclude each other"):
        make_config({"train": "a.csv", "fp16": True, "bf16": True})


def test_saved_settings_read_back_the_same(tmp_path):
    config = make_config({"train": "a.csv", "text": ["Ünïcode", "b"], "r": 4, "layers_to_transform": [1, 2]})
    write_config(config, tmp_path / "config.yaml")
    assert make_config(read_config(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("content", "word"),
    [("r: [", "not valid YAML near line 1"), ("- a", "holds no settings"), ("", "holds no")],
)
def test_broken_settings_files_are_explained(tmp_path, content, word):
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=word):
        read_config(path)


def test_missing_settings_file():
    with pytest.raises(ConfigError, match="Cannot read"):
        read_config("/nowhere/config.yaml")
