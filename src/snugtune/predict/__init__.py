"""Prediction with a finished run: texts or tables in, labels with confidence out."""
