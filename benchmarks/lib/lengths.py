"""The token lengths of real complaints, kept as numbers: benchmarks run where the complaints are not.

``python -m lib.lengths`` in ``benchmarks/`` counts them anew, from the training file of the data set.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snugtune.files import write_text

from .common import REPOSITORY, data_folder

FILE = REPOSITORY / "benchmarks" / "cfpb_lengths.json"
MAX_LENGTH = 512


def cfpb_lengths(rows: int, seed: int = 0, path: Path = FILE) -> NDArray[np.int64]:
    """Lengths (rows,) in MiniLM's tokens, cut at ``MAX_LENGTH``, spread as those of complaints, shuffled.

    They are quantiles at equal distances, so that few rows have the distribution's shape and mean, too.
    """
    counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
    known = np.repeat([int(length) for length in counts], list(counts.values()))
    chosen = known[((np.arange(rows) + 0.5) / rows * len(known)).astype(np.int64)]
    return np.random.default_rng(seed).permutation(chosen).astype(np.int64)


def random_tokens(
    lengths: NDArray[np.int64], vocabulary: int, special: tuple[int, int], seed: int = 0
) -> Any:
    """``Tokens`` of these lengths with ids of no meaning, drawn from the upper half of the vocabulary.

    ``special`` are the ids at the beginning and the end of each text.
    """
    from snugtune.data.tokens import FlatRows, Tokens, Truncation

    flat = np.random.default_rng(seed).integers(vocabulary // 2, vocabulary, int(lengths.sum()), np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    flat[starts[:-1]], flat[starts[1:] - 1] = special
    total = int(lengths.sum())
    return Tokens(FlatRows(flat, starts), lengths, Truncation(int(lengths.max()), len(lengths), 0, total, 0))


def random_texts(lengths: NDArray[np.int64], tokenizer: Any, seed: int = 0) -> list[str]:
    """Texts that ``tokenizer`` cuts into ``lengths`` tokens, of words that are one token each."""
    words = np.array(sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.islower()))
    special = tokenizer.num_special_tokens_to_add(pair=False)
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, max(1, n - special)).tolist()) for n in lengths.tolist()]


def count(folder: Path, path: Path = FILE) -> None:
    """Write how many of the training complaints have each length."""
    from snugtune.data.labels import LabelSet
    from snugtune.data.tokens import tokenize
    from snugtune.model.backbone import load_backbone

    from .datasets import cfpb

    tokenizer = load_backbone("minilm", LabelSet(("a", "b")), pooling="first").tokenizer
    lengths = tokenize(cfpb(folder).train, tokenizer, MAX_LENGTH).lengths
    found = {str(length): int(n) for length, n in zip(*np.unique(lengths, return_counts=True), strict=True)}
    record = {
        "what": f"consumer complaints by length in tokens of all-MiniLM-L6-v2, cut at {MAX_LENGTH}",
        "rows": len(lengths),
        "mean": round(float(lengths.mean()), 2),
        "counts": found,
    }
    write_text(path, json.dumps(record) + "\n")
    print(f"Wrote {path}: {len(lengths)} complaints, mean {lengths.mean():.1f} tokens.")


if __name__ == "__main__":
    found = data_folder("cfpb")
    if found is not None:
        count(found)
