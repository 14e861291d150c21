"""`vqaloop regress`: builds of an encoder run, compared and judged."""
