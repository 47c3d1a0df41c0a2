"""What the frozen model says of texts, read once on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def features(texts: Sequence[str], max_length: int) -> Any:
    """What MiniLM says of the beginnings of N texts (N, H)."""
    from snugtune.config import make_config
    from snugtune.data.labels import LabelSet
    from snugtune.data.tokens import tokenize
    from snugtune.model.backbone import load_for_fit
    from snugtune.model.head import find_head
    from snugtune.model.precision import compute_dtype, pick_device
    from snugtune.train.features import frozen_pass

    config, device = make_config({"train": ""}), pick_device()
    dtype = compute_dtype(config, device)
    backbone = load_for_fit(config, LabelSet(("a", "b")), dtype=dtype, device=device)
    model, pad_token_id = backbone.model.to(device), int(backbone.tokenizer.pad_token_id)
    tokens = tokenize(texts, backbone.tokenizer, max_length)
    seen = frozen_pass(
        model, find_head(model), [tokens], pad_token_id=pad_token_id, device=device, dtype=dtype
    )
    return np.asarray(seen.features, dtype=np.float32)
