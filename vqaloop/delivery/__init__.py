"""`vqaloop deliver`: CMAF segments, HLS and DASH."""
