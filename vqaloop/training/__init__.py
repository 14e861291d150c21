"""`vqaloop corpus`, `distill` and `evaluate`."""
