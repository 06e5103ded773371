"""Runs as others wrote them down: their files, their names, their units."""
