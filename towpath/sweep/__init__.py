"""Hyper-parameter search of the policy stage at equal KL: space, objective, trials, confirmation and verdict."""
