"""Recorded logs of other trainers with and without planted faults, and the doctor's findings on them."""
