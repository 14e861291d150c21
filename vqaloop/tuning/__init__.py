"""`vqaloop tune`: encoder parameters of a title."""
