"""Values and names that programs trip over."""

DEEP = None
for _ in range(300):
    DEEP = [DEEP]

VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.5, 1.5, 1e308, -1e308, float("nan"), float("inf"), 2**31, 2**63, 2**64, 10**30,
    "", " ", "a", "0", "None", "../../..", "../../../etc/passwd", "/etc/passwd", "/", ".", "..", "~", "C:\\windows", "a/b", "\0",
    "a\0b", "\ud800", "é", "=1+1", "<script>alert(1)</script>", "x" * 10_000, "owner/name", "https://example.invalid/x",
    "file:///etc/passwd", "{{7*7}}", "%s%n", "(a+)+$", [], {}, [None], [[]], {"a": {}}, ["a", "a"], [1, "a", None], [float("nan")],
    {"": ""}, DEEP, list(range(1_000)), "float16", "bert", "gpt2", "mean", "sum",
)  # fmt: skip

NAMES = (
    "", "unknown", "auto_map", "trust_remote_code", "custom_pipelines", "architectures", "torch_dtype", "quantization_config",
    "id2label", "num_labels", "__class__", "__init__", "self", "return", "a.b", "../x", "base_model_name_or_path", "pruned_heads",
    "attn_implementation", "_attn_implementation", "use_cache", "vocab_size", "revision", "tokenizer_class", "model_type",
)  # fmt: skip
