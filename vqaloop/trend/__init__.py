"""The history of regress results, and where it changed."""
