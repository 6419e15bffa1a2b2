"""A folder that a stranger loads in one line, from an experiment."""
