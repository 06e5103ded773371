"""Slow proofs and measurements, run by hand and recorded."""
