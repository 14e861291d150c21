"""Labels of a panel of judges: measured on frames in memory, and fused to one label."""
