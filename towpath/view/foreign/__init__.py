"""Logs of other trainers: their files, metric names and units."""
