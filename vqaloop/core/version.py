"""The version of vqaloop."""

__version__ = "0.1.0"
