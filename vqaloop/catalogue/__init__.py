"""Ladders of many titles."""
