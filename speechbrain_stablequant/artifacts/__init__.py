"""What is written and read again: checkpoints, experiments, YAML, reports."""
