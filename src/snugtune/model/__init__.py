"""The model: backbone, adapter, head, attention, parameters, and the saved folder."""
