"""Analyses of trained networks, from the network to data and pictures beside the run."""
