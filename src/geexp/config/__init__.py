"""Configuration: schemas, validation, error messages and the command-line entry. Nothing here imports torch."""
