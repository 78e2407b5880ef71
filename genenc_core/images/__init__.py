"""Which images, in which order, and how they become tensors and points."""
