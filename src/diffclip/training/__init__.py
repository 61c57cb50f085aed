"""Training: the loss, the optimizer, the loop, its checkpoints and what watches over it."""
