"""Training a prompt: the trainer's loop, its arguments, optimizers, checkpoints and progress."""
