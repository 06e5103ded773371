"""Towpath: RLHF for teams, from data to an optimized policy."""

__version__ = "0.1.0"
