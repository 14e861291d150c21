"""`vqaloop encode`: scenes encoded to a target score or bitrate, and concatenated."""
