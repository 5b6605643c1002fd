"""Configuration: what there is, schemas, validation, messages, the command-line entry. Nothing here imports torch."""
