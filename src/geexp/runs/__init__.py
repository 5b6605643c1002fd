"""Runs: identity, folder, files, status and environment. Training writes them, reports and analyses read them."""
