"""Judges that label the material of training: each measured alone, then fused into one score."""
