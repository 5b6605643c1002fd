"""The paper's analyses of trained networks: functions of a model and batches of images."""
