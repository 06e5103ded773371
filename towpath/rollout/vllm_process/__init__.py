"""What runs in the Python that has vLLM. `serve.py` is started by its path: here is no import of Towpath.

`frames.py`, `tensors.py` and `network.py` are loaded on both sides.
"""
