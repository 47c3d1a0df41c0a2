"""Damage to folders: runs, models and saved data sets. Each operation changes the folder in place."""

import json
import pickle
import struct
from pathlib import Path

from fuzz.binary import BINARY, PARQUET
from fuzz.texts import damaged
from fuzz.values import NAMES, VALUES

CANARY = "CANARY"
"""A file of this name, in the folder a case runs in, says that code of the file's author was run."""

SECRET = "../outside/secret.json"


class Hostile:
    """Unpickled, it writes the canary."""

    def __reduce__(self):
        return (exec, (f"open({CANARY!r}, 'w').close()",))


CODE = f"""
open({CANARY!r}, "w").close()
from transformers import BertConfig as HostileConfig, BertForSequenceClassification as HostileModel
"""


def _files(folder, *suffixes):
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and (not suffixes or path.suffix in suffixes)
    )


def _pick(folder, rng, *suffixes):
    found = _files(folder, *suffixes)
    return rng.choice(found) if found else None


def some_bytes(folder, rng):
    path = _pick(folder, rng)
    if path is not None:
        of = rng.choice([*BINARY.values(), *(PARQUET.values() if path.suffix == ".parquet" else ())])
        path.write_bytes(of(path.read_bytes(), rng))


def _change_json(path, change):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(change(value))
    except (ValueError, OSError, RecursionError):
        return
    path.write_text(text, encoding="utf-8")


def json_field(folder, rng):
    path = _pick(folder, rng, ".json")
    if path is not None:
        _change_json(path, lambda value: damaged(value, rng))


def record_field(folder, rng):
    path = folder / "run.json"
    if path.is_file():
        _change_json(path, lambda value: damaged(value, rng))


def json_twice(folder, rng):
    """A key of an object given a second time."""
    path = _pick(folder, rng, ".json")
    if path is not None:
        text = path.read_text(encoding="utf-8", errors="replace")
        key, value = rng.choice(("labels", "model", *NAMES)), json.dumps(rng.choice(VALUES))
        path.write_text(text.rstrip().removesuffix("}") + f', "{key}": {value}}}', encoding="utf-8")


def json_not_object(folder, rng):
    path = _pick(folder, rng, ".json")
    if path is not None:
        path.write_text(
            rng.choice(
                ("", "[]", "null", "1", '"a"', "{", "{}", "[" * 100_000, '{"a":' * 5_000, "NaN", "\ufeff{}")
            ),
            encoding="utf-8",
        )


def deep_field(folder, rng):
    path = _pick(folder, rng, ".json")
    if path is not None:
        n = rng.choice((500, 990))
        text = path.read_text(encoding="utf-8", errors="replace").rstrip().removesuffix("}")
        path.write_text(text + ', "unknown": ' + "[" * n + "]" * n + "}", encoding="utf-8")


def file_gone(folder, rng):
    path = _pick(folder, rng)
    if path is not None:
        path.unlink()


def file_empty(folder, rng):
    path = _pick(folder, rng)
    if path is not None:
        path.write_bytes(b"")


def file_is_folder(folder, rng):
    path = _pick(folder, rng)
    if path is not None:
        path.unlink()
        path.mkdir()


def files_exchanged(folder, rng):
    one, other = _pick(folder, rng), _pick(folder, rng)
    if one is not None and one != other:
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)


def tensors(folder, rng):
    """The header of a safetensors file: its length, and names, types, shapes and offsets in it."""
    path = _pick(folder, rng, ".safetensors")
    if path is None:
        return
    content = path.read_bytes()
    try:
        size = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + size])
    except (ValueError, struct.error):
        return
    way = rng.randrange(9)
    names = [name for name in header if name != "__metadata__"]
    if way == 0:
        lie = rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1, 100_000_001))
        path.write_bytes(struct.pack("<Q", lie) + content[8:])
        return
    if not names:
        return
    name = rng.choice(names)
    if way == 1:
        header[name]["shape"] = rng.choice(
            ([], [0], [1], [2**40, 2**40], [-1], header[name]["shape"][::-1], ["a"], [1] * 100)
        )
    elif way == 2:
        header[name]["data_offsets"] = rng.choice(
            ([0, 0], [0, 2**63], [-1, 4], [8, 4], header[rng.choice(names)]["data_offsets"])
        )
    elif way == 3:
        header[name]["dtype"] = rng.choice(("F64", "F16", "I64", "BOOL", "F8_E4M3", "X", "BF16", "U8"))
    elif way == 4:
        new = rng.choice(
            ("x", "../CANARY", "classifier.weight", name.replace("layer.0", "layer.99"), name + ".x", "")
        )
        header = {new if key == name else key: value for key, value in header.items()}
    elif way == 5:
        del header[name]
    elif way == 6:
        header = damaged(header, rng)
    elif way == 7:
        header["__metadata__"] = rng.choice(
            ({}, {"format": "tf"}, {"format": "flax"}, {"format": 1}, [], {"format": "<script>"})
        )
    else:
        content = content[: 8 + size] + bytes([0xFF]) * (
            len(content) - 8 - size
        )  # not a number, each of them
    text = json.dumps(header).encode("utf-8", "replace")
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def pickled(folder, rng):
    """Weights replaced by, or beside, a pickle that runs code."""
    path = _pick(folder, rng, ".safetensors")
    names = ("adapter_model.bin", "pytorch_model.bin", "model.bin", "training_args.bin")
    target = (path.parent if path else folder) / rng.choice(names)
    if path is not None and rng.random() < 0.7:
        path.unlink()
        names = {"adapter_model.safetensors": "adapter_model.bin", "model.safetensors": "pytorch_model.bin"}
        target = path.parent / names.get(path.name, "weights.bin")
    target.write_bytes(pickle.dumps(Hostile()))
    if path is not None and rng.random() < 0.2:
        path.write_bytes(pickle.dumps(Hostile()))


def remote_code(folder, rng):
    """A request that Transformers run the folder's own code."""
    found = [path for path in _files(folder, ".json") if "config" in path.name or path.name == "run.json"]
    if not found:
        return
    path = rng.choice(found)
    (path.parent / "hostile.py").write_text(CODE, encoding="utf-8")
    asks = rng.choice(
        (
            {
                "auto_map": {
                    "AutoConfig": "hostile.HostileConfig",
                    "AutoModelForSequenceClassification": "hostile.HostileModel",
                    "AutoTokenizer": ["hostile.HostileTokenizer", "hostile.HostileTokenizer"],
                }
            },
            {"trust_remote_code": True},
            {"model_type": "hostile"},
            {"tokenizer_class": "HostileTokenizer"},
            {"auto_mapping": {"base_model_class": "HostileModel", "parent_library": "hostile"}},
            {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
            {"custom_pipelines": {"text-classification": {"impl": "hostile.HostileModel"}}},
            {"runtime_config": {"ephemeral_gpu_offload": True}},
            {"peft_type": "XLORA"},
            {"peft_type": "../hostile"},
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            {"quantization_config": {"quant_method": "hostile"}},
            {"megatron_config": {"a": 1}, "megatron_core": "hostile"},
            {"lora_bias": "x"},
            {"_name_or_path": SECRET},
            {"attn_implementation": "hostile/kernel"},
            {"_attn_implementation": "hostile/kernel:f"},
            {"name_or_path": SECRET},
        )
    )
    _change_json(path, lambda value: value | asks if isinstance(value, dict) else value)


def elsewhere(folder, rng):
    """A name that leads out of the folder."""
    found = _files(folder, ".json")
    if not found:
        return
    path = rng.choice(found)
    where = rng.choice(
        (
            "..",
            "../..",
            "../outside",
            "/etc",
            "/",
            SECRET,
            "/proc/self",
            "~",
            "//host/share",
            "owner/model",
            "a\0b",
            "",
            ".",
        )
    )
    asks = rng.choice(
        (
            {"model": {"folder": where, "max_length": 10}},
            {"base_model_name_or_path": where},
            {"vocab_file": where},
            {"tokenizer_file": where},
            {"tokenizer_object": where},
            {"revision": where},
            {"chat_template": where},
            {"files": [where]},
            {"labels": [where, "Fees", "b"]},
            {"label_aliases": {where: where}},
            {"subfolder": where},
        )
    )
    _change_json(path, lambda value: value | asks if isinstance(value, dict) else value)


_ALL = (
    some_bytes,
    json_field,
    json_twice,
    json_not_object,
    deep_field,
    file_gone,
    file_empty,
    file_is_folder,
    files_exchanged,
)
DATASET = {of.__name__: of for of in (*_ALL, elsewhere)}
MODEL = {of.__name__: of for of in (*_ALL, tensors, pickled, remote_code, elsewhere)}
RUN = MODEL | {"record_field": record_field}


def names_of(folder):
    """Every path under ``folder``, relative to it."""
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*")}
