"""Titles made unattended: a watched folder, and a server with a queue."""
