"""What a run leaves in its folder, and on what it was run: written by training, read by results."""
