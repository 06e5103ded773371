"""Faults planted into real small trainings, and healthy trainings beside them: what the health checks find, and
when."""
