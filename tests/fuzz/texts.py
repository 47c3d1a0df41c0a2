"""Damage to text files: CSV, JSON lines and YAML."""

import codecs
import json
import re

from fuzz.values import NAMES, VALUES

CSV_PIECES = (
    b'"',
    b'""',
    b"'",
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b",",
    b";",
    b"\t",
    b"|",
    b"\x1f",
    b"\\",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xc3",
    b"\xe4",
    b"\x80",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\x1a",
    b"\x85",
    "\u2028".encode(),
    "\u202e".encode(),
    b"=cmd|' /C calc'!A0",
    b"<script>alert(1)</script>",
    b"#",
    b" ",
    b'"\n',
)


def pieces(content, rng):
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(content) + 1)
        content = content[:at] + rng.choice(CSV_PIECES) + content[at:]
    return content


def encoded(content, rng):
    text = content.decode("utf-8", "replace")
    codec = rng.choice(
        ("utf-16", "utf-16-le", "utf-32", "cp1252", "utf-7", "utf-8-sig", "shift_jis", "cp037")
    )
    return text.encode(codec, "replace")


def two_encodings(content, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + content[at:].decode("utf-8", "replace").encode(
        rng.choice(("utf-16-le", "cp1252")), "replace"
    )


def marked(content, rng):
    mark = rng.choice(
        (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    )
    return mark * rng.choice((1, 2)) + content


def one_line(content, rng):
    return content.replace(b"\n", rng.choice((b" ", b"", b",")))


def long_line(content, rng):
    at = rng.randrange(len(content) + 1)
    return (
        content[:at]
        + rng.choice((b"a", b",", b'"', b"[", b'{"a":')) * rng.choice((10_000, 300_000))
        + content[at:]
    )


def many_columns(content, rng):
    n = rng.choice((1_000, 20_000, 100_000))
    return b",".join(b"c%d" % i for i in range(n)) + b"\n" + b"," * (n - 1) + b"\n" + content


def shuffled(content, rng):
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def repeated_line(content, rng):
    lines = content.splitlines(keepends=True) or [b""]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines) * rng.choice((1, 50)))
    return b"".join(lines)


def emptied(content, rng):
    return rng.choice((b"", b"\n", b"\n" * 500, b" ", b'"', b"\xef\xbb\xbf", b"text,label\n", b"text"))


CSV = {
    of.__name__: of
    for of in (
        pieces,
        encoded,
        two_encodings,
        marked,
        one_line,
        long_line,
        many_columns,
        shuffled,
        repeated_line,
        emptied,
    )
}

# --- JSON ------------------------------------------------------------------------------------------------


def damaged(value, rng, depth=0):
    """``value`` with one thing in it another."""
    if isinstance(value, dict) and value and (depth == 0 or rng.random() < 0.8):
        key = rng.choice(list(value))
        way = rng.randrange(8)
        if way == 0:
            return {k: v for k, v in value.items() if k != key}
        if way == 1:
            return value | {rng.choice(NAMES): rng.choice(VALUES)}
        return value | {key: damaged(value[key], rng, depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        i, way = rng.randrange(len(value)), rng.randrange(5)
        if way == 0:
            return [*value[:i], *value[i + 1 :]]
        if way == 1:
            return [*value[:i], value[i], *value[i:]]
        return [*value[:i], damaged(value[i], rng, depth + 1), *value[i + 1 :]]
    return rng.choice(VALUES)


def damaged_json(content, rng):
    """One document with a value changed; bytes that are none stay as they are."""
    try:
        value = json.loads(content)
        return json.dumps(damaged(value, rng), ensure_ascii=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, RecursionError):
        return content


def fields(content, rng):
    lines = content.split(b"\n")
    for _ in range(rng.choice((1, 1, 5))):
        i = rng.randrange(len(lines))
        lines[i] = damaged_json(lines[i], rng)
    return b"\n".join(lines)


def deep(content, rng):
    n = rng.choice((100, 990, 5_000, 100_000))
    value = rng.choice((b"[" * n + b"]" * n, b'{"a":' * n + b"1" + b"}" * n, b"[" * n))
    return content + b'{"text": ' + value + b', "label": "Card"}\n'


def odd_numbers(content, rng):
    number = rng.choice(
        (
            b"1e999",
            b"-1e999",
            b"NaN",
            b"Infinity",
            b"9" * 30,
            b"9" * 5_000,
            b"1" + b"0" * 400,
            b"0.1e-400",
            b"-0",
            b"18446744073709551616",
            b"1.0",
        )
    )
    return content + b'{"text": "card", "label": "Fees", "n": ' + number + b"}\n"


def surrogates(content, rng):
    text = rng.choice(
        (b"\\ud800", b"\\udfff\\ud800", b"\\ud83d", b"\\u0000", b"\\ud83d\\ude00", b"\xed\xa0\x80")
    )
    key = rng.choice((b"text", b"label", text))
    return content + b'{"' + key + b'": "a' + text + b'", "text": "b", "label": "Card"}\n'


def twice(content, rng):
    key = rng.choice((b"text", b"label", b"n"))
    return (
        content
        + b'{"text": "a", "label": "Card", "'
        + key
        + b'": '
        + rng.choice((b"1", b'"b"', b"null", b"{}"))
        + b"}\n"
    )


def many_keys(content, rng):
    n = rng.choice((1_000, 30_000))
    return (
        content + json.dumps({f"k{i}": i for i in range(n)} | {"text": "a", "label": "Card"}).encode() + b"\n"
    )


def as_list(content, rng):
    return b"[" + b",".join(line for line in content.splitlines() if line) + b"]"


JSON = {
    of.__name__: of
    for of in (
        fields,
        deep,
        odd_numbers,
        surrogates,
        twice,
        many_keys,
        as_list,
        pieces,
        encoded,
        marked,
        long_line,
        emptied,
    )
}

# --- YAML ------------------------------------------------------------------------------------------------

_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_PIECES = (
    "r: 16\nr: 8\n",
    _BOMB,
    f"{_BOMB}text: *i\n",
    "text: &t [*t]\n",
    "r: !!python/object/apply:os.system ['touch CANARY']\n",
    "model: !!python/name:os.system\n",
    "model: !!python/object/new:os.system ['touch CANARY']\n",
    "trust_remote_code: true\n",
    "auto_map: {AutoModel: x.Y}\n",
    "r: 0x10\n",
    "r: 1_000\n",
    "r: 010\n",
    "r: 1:30\n",
    "seed: 2024-01-01\n",
    "r: yes\n",
    "r: .inf\n",
    "learning_rate: .nan\n",
    "learning_rate: 1e999\n",
    "seed: " + "9" * 5_000 + "\n",
    "? [a, b]\n: c\n",
    "? {a: b}\n: c\n",
    "<<: {r: 8}\n",
    "<<: *r\n",
    "---\nr: 8\n---\nr: 9\n",
    "...\n",
    "\t r: 8\n",
    "r: !!binary aGVsbG8=\n",
    "text: !!set {a, b}\n",
    "text: !!omap [a: b]\n",
    "r: !!int '99999999999999999999'\n",
    "seed: !!timestamp x\n",
    "r: !!float x\n",
    "r: !!bool maybe\n",
    "text: " + "[" * 2_000 + "\n",
    "text: " + "{a: " * 500 + "1" + "}" * 500 + "\n",
    "text: [" + "a, " * 50_000 + "]\n",
    "null: 1\n",
    "1: 2\n",
    "~: ~\n",
    "%YAML 9.9\n---\n",
    "%TAG ! tag:x,2000:\n---\nr: !x 1\n",
    'text: "\\ud800"\n',
    'text: "\\U0010FFFF"\n',
    'text: "\\0"\n',
    "text: |\n  a\n b\n",
    "label: ../../etc/passwd\n",
    "train: ../../../etc/passwd\n",
    "model: ../../..\n",
    "max_time_s: 99999999999999h\n",
    "max_time_s: -1\n",
    "delimiter: ''\n",
    "target_modules: '(a+)+$'\n",
    "label: {a: b}\n",
    "layers_to_transform: [-1, 1e9]\n",
    "\x00",
    "\x85",
    "\u2028",
    "r: &a 1\nlora_alpha: *a\n",
    "lora_alpha: *nobody\n",
    "text: >-\n",
    "'",
    '"',
    ": :",
    "- a\n",
    "!",
    "&",
    "*",
    "@",
    "`",
    "!!python/object/apply:os.system ['touch CANARY']\n",
    "!!python/tuple [1]\n",
    "!!str\n",
    "{r: 1, r: 2}\n",
    "test:\n  r: 1\n  r: 2\n",
)


def yaml_pieces(content, rng):
    lines = content.splitlines(keepends=True)
    for _ in range(rng.choice((1, 1, 2))):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(YAML_PIECES).encode("utf-8"))
    return b"".join(lines)


def yaml_only(content, rng):
    return rng.choice(YAML_PIECES).encode("utf-8")


def yaml_value(content, rng):
    """A setting with a value of another kind."""
    keys = re.findall(rb"(?m)^(\w+):.*$", content) or [b"r"]
    value = json.dumps(rng.choice(VALUES), allow_nan=True).encode()
    return re.sub(
        rb"(?m)^%s:.*$" % re.escape(rng.choice(keys)), lambda m: m[0].split(b":")[0] + b": " + value, content
    )


YAML = {of.__name__: of for of in (yaml_pieces, yaml_only, yaml_value)}
