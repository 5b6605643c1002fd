"""The paper's numbers, tables and pictures."""
