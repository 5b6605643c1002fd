"""Data sets (what the images are) and feeds (how they reach the device)."""
