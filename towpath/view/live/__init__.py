"""A run while it goes on: its files read as they grow, and what there is to see in them.

Here a step is how many were done, 0 before the first; the files count from 0, so one is added where they are read.
"""
