"""Training: the frozen pass and its probe, the engine (one visible loop), optimiser and schedule."""
