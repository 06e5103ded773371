"""Workers: each runs one workload in its own environment and tells what it counted and timed."""
