"""Running trials: cache, workshop, local executor, jobs."""
