"""The frozen pass and what is kept of it: the same features, the model asked once, no damaged row read."""

import os
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from snugtune.data.tokens import Tokens, Truncation, choose_rows
from snugtune.errors import UserInputError
from snugtune.model.head import find_head
from snugtune.train import feature_store
from snugtune.train.feature_store import LIMIT_VARIABLE, FeatureStore, features_folder, open_store
from snugtune.train.features import frozen_pass, model_digest, row_keys
from snugtune.train.forward import layer_inputs
from tiny_training import CPU, examples, tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SNUGTUNE_CACHE", str(tmp_path))
    return tmp_path / "features"


@pytest.fixture
def parts():
    return [examples(40, 1).tokens, examples(15, 2).tokens]


class Counted:
    """Texts that reach a model's head."""

    def __init__(self, model):
        self.rows = 0
        model.dropout.register_forward_pre_hook(self._count)

    def _count(self, _dropout, inputs):
        self.rows += len(inputs[0])


def read(model, parts, dtype=torch.float32, **options):
    return frozen_pass(model, find_head(model), parts, pad_token_id=0, device=CPU, dtype=dtype, **options)


def without_cache(model, parts, monkeypatch, dtype=torch.float32):
    with monkeypatch.context() as off:
        off.setenv(LIMIT_VARIABLE, "0")
        return read(model, parts, dtype).features


# The pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_pass_asks_the_model_nothing_and_gives_the_same_bits(parts, dtype, monkeypatch):
    model = tiny_model().to(dtype)
    plain = without_cache(model, parts, monkeypatch, dtype)
    seen = Counted(model)
    first, second = read(model, parts, dtype), read(model, parts, dtype)
    assert seen.rows == 55
    assert (first.rows_from_cache, second.rows_from_cache) == (0, 55)
    assert np.array_equal(first.features, plain)
    assert np.array_equal(second.features, plain)
    assert first.features.shape == (55, 32)


def test_features_are_those_of_the_parts_one_after_another(parts):
    model = tiny_model()
    layer = find_head(model).feature_layer
    each = [layer_inputs(model, layer, part, pad_token_id=0, device=CPU) for part in parts]
    assert np.array_equal(read(model, parts).features, np.concatenate(each))


def test_only_new_rows_are_read_and_their_company_changes_no_bit(parts, monkeypatch):
    model = tiny_model().bfloat16()
    both = choose_rows(parts, np.arange(55))
    plain = without_cache(model, [both], monkeypatch, torch.bfloat16)
    read(model, [choose_rows(parts, np.arange(3, 55, 2))], torch.bfloat16)
    seen, told = Counted(model), []
    found = read(model, [both], torch.bfloat16, on_rows=told.append)
    assert seen.rows == 29
    assert found.rows_from_cache == 26
    assert sum(told) == 55
    assert np.array_equal(found.features, plain)


def test_rows_in_another_order_are_found_again(parts):
    model = tiny_model()
    order = np.random.default_rng(0).permutation(55)
    first = read(model, parts)
    again = read(model, [choose_rows(parts, order)])
    assert again.rows_from_cache == 55
    assert np.array_equal(again.features, first.features[order])


def test_a_pass_that_breaks_off_keeps_nothing(parts, cache):
    model = tiny_model()
    handle = model.base_model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read(model, parts)
    handle.remove()
    assert not list(cache.rglob("*.safetensors"))
    assert read(model, parts).rows_from_cache == 0


# What decides the features


def digest(model, **changes):
    conditions = {"pad_token_id": 0, "device": CPU, "dtype": torch.float32} | changes
    return model_digest(model, find_head(model), **conditions)


def test_other_labels_dropout_and_heads_are_the_same_model():
    model, other = tiny_model(), tiny_model(dropout=0.3)
    other.config.id2label = {i: f"other {i}" for i in range(4)}
    other.config._name_or_path = "/elsewhere"
    with torch.no_grad():
        for layer in (other.classifier, other.bert.pooler.dense):
            layer.weight.add_(1.0)
    assert digest(model) == digest(other)


def test_any_weight_setting_or_format_makes_another_model():
    model = tiny_model()
    found = {digest(model), digest(model, pad_token_id=3), digest(model, dtype=torch.bfloat16)}
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] += 1e-6
    found.add(digest(model))
    model.config.layer_norm_eps = 1e-5
    found.add(digest(model))
    found.add(digest(tiny_model().bfloat16()))
    assert len(found) == 6


def test_keys_tell_texts_and_models_apart():
    def tokens(*rows):
        ids = [np.array(row, dtype=np.int32) for row in rows]
        return Tokens(ids, np.array([len(row) for row in ids]), Truncation(9, len(ids), 0, 0, 0))

    keys = row_keys("a", tokens([1, 2], [1], [2, 1], [1, 2]))
    assert len(np.unique(keys, axis=0)) == 3
    assert np.array_equal(keys[0], keys[3])
    assert not (keys == row_keys("b", tokens([1, 2], [1], [2, 1], [1, 2]))).all(1).any()
    assert np.array_equal(row_keys("a", tokens(np.array([1, 2], dtype=np.int64)))[0], keys[0])


# The files


def kept(n=6, width=4, seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**63, (n, 4)).astype(np.uint64)
    return keys, rng.normal(size=(n, width)).astype(np.float32)


@pytest.fixture
def store(cache):
    return FeatureStore(cache / "model", 10**9)


def only_file(store):
    (path,) = store.folder.glob("[!.]*")
    return path


def test_what_bfloat16_holds_exactly_takes_half_the_room(store):
    keys, values = kept()
    exact = torch.from_numpy(values).bfloat16().float().numpy()
    store.add(keys, exact, tokens=1, seconds=1.0)
    assert load_file(only_file(store))["features"].dtype == torch.bfloat16
    assert np.array_equal(store.read(keys)[1], exact)


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other tensors", "shapes"])
def test_a_damaged_file_is_removed_and_its_rows_count_as_unread(store, damage):
    keys, values = kept()
    store.add(keys, values, tokens=1, seconds=1.0)
    path = only_file(store)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(os.urandom(len(content)))
    elif damage == "other tensors":
        save_file({"a": torch.zeros(2)}, path)
    else:
        tensors = load_file(path)
        save_file(tensors | {"keys": tensors["keys"][:2].clone()}, path)
    known, found = store.read(keys)
    assert not known.any()
    assert found is None
    assert not path.exists()
    assert store.tokens_per_s() is None


def test_a_row_whose_bits_changed_is_not_believed(store):
    keys, values = kept()
    store.add(keys, values, tokens=1, seconds=1.0)
    path = only_file(store)
    content = path.read_bytes()
    place = content.index(values[2].tobytes())
    path.write_bytes(content[: place + 1] + bytes([content[place + 1] ^ 4]) + content[place + 2 :])
    known, found = store.read(keys)
    assert known.tolist() == [True, True, False, True, True, True]
    assert np.array_equal(found[known], values[known])


def test_rows_are_gathered_from_several_files_and_a_file_of_another_width_goes(store):
    (a, of_a), (b, of_b), (c, of_c) = kept(seed=1), kept(seed=2), kept(width=5, seed=3)
    for keys, values in ((c, of_c), (a, of_a), (b, of_b)):
        store.add(keys, values, tokens=1, seconds=1.0)
        time.sleep(0.01)
    wanted = np.concatenate([b[::-1], a[:2], kept(seed=4)[0][:1], c[:1]])
    known, found = store.read(wanted)
    assert known.tolist() == [True] * 8 + [False] * 2
    assert np.array_equal(found[:8], np.concatenate([of_b[::-1], of_a[:2]]))
    assert len(list(store.folder.iterdir())) == 2


def test_keys_that_share_their_first_word_are_told_apart(store):
    keys, values = kept()
    keys[:, 0] = 7
    store.add(keys[:3], values[:3], tokens=1, seconds=1.0)
    known, found = store.read(keys)
    # The first of them only: the others count as unread, which costs time and nothing else.
    assert not known[3:].any()
    assert np.array_equal(found[known], values[known])


def test_the_oldest_go_first_when_there_is_too_much(cache):
    stores = [FeatureStore(cache / name, 25_000) for name in "abc"]
    rows = [kept(n=60, width=32, seed=seed) for seed in range(3)]
    for place, (store, (keys, values)) in enumerate(zip(stores[:2], rows[:2], strict=True)):
        store.add(keys, values, tokens=1, seconds=1.0)
        os.utime(only_file(store), (place + 1, place + 1))
    stores[0].read(rows[0][0])  # used, so no longer the oldest
    stores[2].add(*rows[2], tokens=1, seconds=1.0)
    assert [store.read(keys)[0].all() for store, (keys, _) in zip(stores, rows, strict=True)] == [
        True, False, True,
    ]  # fmt: skip


def test_what_is_larger_than_all_the_room_is_not_kept(cache):
    store = FeatureStore(cache / "a", 100)
    store.add(*kept(), tokens=1, seconds=1.0)
    assert not cache.exists()


def test_a_full_or_unwritable_disk_fails_no_run(store, monkeypatch, cache):
    monkeypatch.setattr(feature_store, "ROOM_LEFT_BYTES", 2**62)
    store.add(*kept(), tokens=1, seconds=1.0)
    assert not list(store.folder.iterdir())
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    store.add(*kept(), tokens=1, seconds=1.0)
    assert store.read(kept()[0])[1] is None


def test_temporary_files_of_dead_writers_are_cleared_away(store):
    store.folder.mkdir(parents=True)
    old, young = (store.folder / f".{name}.safetensors" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    store.add(*kept(), tokens=1, seconds=1.0)
    assert not old.exists()
    assert young.exists()
    assert store.read(kept()[0])[0].all()
    assert young.exists()


def test_writers_of_the_same_rows_leave_one_file(store):
    for _ in range(2):
        store.add(*kept(), tokens=1, seconds=1.0)
    assert only_file(store)


def test_the_rate_is_the_newest_pass_that_was_long_enough(store):
    assert store.tokens_per_s() is None
    for seed, tokens in ((1, 4000), (2, 9000), (3, 50)):
        store.add(*kept(seed=seed), tokens=tokens, seconds=2.0)
        time.sleep(0.01)
    assert store.tokens_per_s() == 4500.0


# Where, and how much


@pytest.mark.parametrize("size", ["", "0.5", "8"])
def test_the_environment_says_how_much_is_kept(monkeypatch, size):
    monkeypatch.setenv(LIMIT_VARIABLE, size)
    assert open_store("m").limit_bytes == float(size or 4) * 2**30


def test_zero_keeps_nothing(monkeypatch, cache, parts):
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert open_store("m") is None
    assert read(tiny_model(), parts).rows_from_cache == 0
    assert not cache.exists()


@pytest.mark.parametrize("size", ["much", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_told(monkeypatch, size):
    monkeypatch.setenv(LIMIT_VARIABLE, size)
    with pytest.raises(UserInputError, match=f"{LIMIT_VARIABLE}={size}"):
        open_store("m")


def test_the_folder_follows_the_users_cache(monkeypatch, tmp_path):
    assert features_folder() == tmp_path / "features"
    monkeypatch.delenv("SNUGTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert features_folder() == tmp_path / "xdg" / "snugtune" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # not valid by the specification
    assert features_folder().is_absolute()
