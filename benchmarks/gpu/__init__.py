"""Correctness and speed of one GPU, on random weights of named shapes: `python -m benchmarks.gpu`."""
