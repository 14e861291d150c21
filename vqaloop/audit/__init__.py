"""Somebody's finished ladder measured against its source, and what could be better about it."""
