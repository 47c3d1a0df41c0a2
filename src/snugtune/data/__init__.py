"""Data: tables in, labels cleaned, near-duplicates grouped, rows split, texts tokenized and batched."""
