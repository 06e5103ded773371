"""Detectors, one file for each kind of fault: each takes a history and limits, and yields findings."""
