"""Which encodes to make: search space, surrogate models, priors, hull, rungs, shared study."""
