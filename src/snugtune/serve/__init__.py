"""A finished run behind HTTP: text-embeddings-inference's wire format, and answers with a threshold.

The way of a request: ``gate.py`` (key, size, time), ``app.py`` (routes), ``models.py`` (admission),
``engine.py`` (texts to token ids and ids to answers), ``batcher.py`` (which texts are computed together),
and back.
"""
