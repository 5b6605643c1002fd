"""Measurements of speed, and the realistic data that they are made on."""
