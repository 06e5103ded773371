"""Planted faults in small real trainings, and healthy trainings: what the health detectors find, and when."""
