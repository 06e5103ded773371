"""Evaluation judges of each kind, and which of them a recipe has."""
