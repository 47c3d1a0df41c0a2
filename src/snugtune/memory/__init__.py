"""How much memory a training step takes, and which configuration fits a device: trace, allocator, plan."""
