"""Logs of other trainers, with faults planted and without, and what the doctor says of them."""
