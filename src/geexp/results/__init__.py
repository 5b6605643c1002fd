"""Run records, the paper's numbers, tables and pictures."""
