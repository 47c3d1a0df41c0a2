"""How good is the model: metrics, calibration, the linear baseline and the mixture of both (no torch)."""
