"""Texts that may carry any number of labels: metrics, decision, assessment and verdict."""
