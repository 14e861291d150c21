"""Reading video: probing, selective decoding, scene cuts, excerpts, synthetic samples."""
