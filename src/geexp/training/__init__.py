"""Training: the Lightning module, schedules, optimiser groups, checkpoints, callbacks, and one whole run."""
