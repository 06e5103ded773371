"""Fingerprint of a reward function, by which a stopped training recognises the reward that it was trained with."""

import functools
import hashlib
import inspect
import json
from typing import Any


class NoFingerprint(Exception):
    """The source of a reward function, or a value bound to it, cannot be written as text."""


def fingerprint(function: Any) -> str:
    """A hash of the source of the function and of its module, and of the plain values bound to it.

    Bound values are defaults, closures, arguments of a partial and attributes of an object. Module globals count by
    the source that sets them.
    """
    bound: list[Any] = []
    try:
        if isinstance(function, functools.partial):
            bound += [function.args, function.keywords]
            function = function.func
        if inspect.ismethod(function):
            bound.append(vars(function.__self__))
            function = function.__func__
        bound.append(vars(function))
        if inspect.isfunction(function):
            bound += [function.__defaults__, function.__kwdefaults__, inspect.getclosurevars(function).nonlocals]
            bound.append(list(function.__code__.co_positions()))  # tells apart two lambdas of one line
        code = function if inspect.isfunction(function) else type(function)
        source = [inspect.getsource(code), inspect.getsource(inspect.getmodule(code) or code)]
        return hashlib.sha256(json.dumps([source, bound], sort_keys=True).encode()).hexdigest()[:12]
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise NoFingerprint(str(error)) from None
