"""Quality metrics by name, the student metric, and BD-rate."""
