"""Launching sweeps: jobs, plan, local processes and devices, SLURM. Does not import torch."""
