"""Reward sources, and how their scores become one reward."""
