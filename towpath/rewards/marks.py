"""A mark of what a function does: of its code and of all that it reads, the same wherever its file lies and in whichever process."""

import collections
import dis
import enum
import functools
import hashlib
import importlib.util
import io
import logging
import os
import pickle
import random
import re
import site
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDERS = {*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages()}
LIBRARIES = tuple(folder + os.sep for folder in (*FOLDERS, str(Path(__file__).parent.parent)))
PLAIN = (type(None), bool, float, complex, str, bytes, range, slice, type(...), type(NotImplemented))
HANDLES = (type(threading.Lock()), type(threading.RLock()), io.IOBase)
"""Which one it is does not change what is computed."""
MACHINERY = (types.MemberDescriptorType, types.GetSetDescriptorType)


class Untold(Exception):
    """Something of it cannot be written down: a connection, a running generator."""


def mark(thing: Any) -> str:
    """Twelve signs that differ where the code, a default, a closure, a global that it names or an object's state does."""
    digest = hashlib.sha256()
    for part in _parts(thing, {}):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:12]


def _parts(thing: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """Bytes that tell the thing, its parts one after the other; what has been met before by its number."""
    yield type(thing).__qualname__.encode()
    if isinstance(thing, PLAIN):
        yield repr(thing).encode("utf-8", "surrogatepass")
    elif type(thing) is int:
        yield f"{thing:x}".encode()
    elif id(thing) in seen:
        yield str(seen[id(thing)][0]).encode()
    else:
        seen[id(thing)] = len(seen), thing  # held, so that no other takes its number
        for part in _inside(thing):
            yield from [part] if isinstance(part, bytes) else _parts(part[0], seen)


def _inside(thing: Any) -> Iterator[bytes | tuple[Any]]:
    """Bytes, and parts to be told in turn, each in a tuple of its own."""
    torch = sys.modules.get("torch")
    if isinstance(thing, types.CodeType):
        yield thing.co_code
        yield from _each(thing.co_names, thing.co_freevars, thing.co_consts)
    elif isinstance(thing, types.FunctionType):
        yield thing.__qualname__.encode()
        yield from _each(thing.__defaults__, thing.__kwdefaults__, _held(thing))
        if not _installed(thing.__code__.co_filename):
            yield from _each(thing.__code__, _read(thing), vars(thing))
    elif isinstance(thing, types.MethodType):
        yield from _each(thing.__func__, thing.__self__)
    elif isinstance(thing, types.BuiltinFunctionType):
        yield thing.__name__.encode()
        yield from _each(thing.__self__)
    elif isinstance(thing, types.ModuleType):
        yield _file(thing.__name__, getattr(thing, "__file__", None))
    elif isinstance(thing, type):
        yield f"{thing.__module__}.{thing.__qualname__}".encode()
        if not _of_a_library(thing):
            yield from _each(_written(thing), type(thing), *thing.__bases__)
    elif isinstance(thing, functools.partial):
        yield from _each(thing.func, thing.args, thing.keywords)
    elif isinstance(thing, HANDLES):
        return
    elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject and type(thing) is np.ndarray:
        yield f"{thing.dtype}{thing.shape}".encode()
        yield hashlib.sha256(np.ascontiguousarray(thing).tobytes()).digest()
    elif torch and isinstance(thing, torch.Tensor | torch.nn.Module | torch.Generator):
        yield from _of_torch(thing, torch)
    elif isinstance(thing, property | staticmethod | classmethod):
        yield from _each(*(getattr(thing, name, None) for name in ("__func__", "fget", "fset")))
    else:
        yield from _of_an_object(thing)


def _of_torch(thing: Any, torch: Any) -> Iterator[bytes | tuple[Any]]:
    """A tensor's bytes; of a module what it holds, hooks apart; a generator's state."""
    if isinstance(thing, torch.Generator):
        yield from _each(thing.get_state())
    elif isinstance(thing, torch.Tensor):
        yield f"{thing.dtype}{tuple(thing.shape)}".encode()
        yield hashlib.sha256(thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).digest()
    else:
        own = not _of_a_library(type(thing))
        state = {name: part for name, part in vars(thing).items() if not name.startswith("_") and (own or isinstance(part, (*PLAIN, int)))}
        yield from _each(type(thing), state, thing._parameters, thing._buffers, thing._modules)


def _of_an_object(thing: Any) -> Iterator[bytes | tuple[Any]]:
    """What a container holds; the class and the state of an object whose class is the caller's own; a library's as it pickles itself, but
    for those that are known."""
    own, held = not _of_a_library(type(thing)), True
    if isinstance(thing, list | tuple | collections.deque):
        yield from _each(*thing)
    elif isinstance(thing, dict | types.MappingProxyType):
        yield from _each(getattr(thing, "default_factory", None), *(part for pair in thing.items() for part in pair))
    elif isinstance(thing, set | frozenset):
        yield from sorted(b"".join(_parts(part, {})) for part in thing)
    elif isinstance(thing, np.ndarray):
        yield from _each(thing.shape, *(thing.ravel().tolist() if thing.dtype.hasobject else (pickle.dumps(thing),)))
    elif isinstance(thing, re.Pattern):
        yield from _each(thing.pattern, thing.flags)
    elif isinstance(thing, logging.Logger):
        yield from _each(thing.name)
    elif isinstance(thing, random.Random):
        yield from _each(thing.getstate())
    elif isinstance(thing, enum.Enum):
        yield from _each(thing.name, thing.value)
    else:
        held = False
    if own:
        yield from _each(type(thing), getattr(thing, "__dict__", None), _slots(thing))
    elif not held and hasattr(thing, "__dict__"):
        yield from _each(type(thing), vars(thing))
    elif not held:
        try:
            yield pickle.dumps(thing)
        except Exception as error:  # whatever a type of somebody else's raises
            raise Untold(str(error)) from None


def _each(*parts: Any) -> Iterator[tuple[Any]]:
    return ((part,) for part in parts)


def _read(function: types.FunctionType) -> dict[str, Any]:
    """What a function's code names: globals, and the files of the caller's own modules that it imports."""
    found: dict[str, Any] = {}
    for code in _codes(function.__code__):
        found |= {name: function.__globals__[name] for name in sorted(set(code.co_names)) if name in function.__globals__}
        for step in dis.get_instructions(code):
            if step.opname == "IMPORT_NAME":
                spec = importlib.util.find_spec(step.argval.partition(".")[0]) if step.argval else None
                found[f"import {step.argval}"] = _file(step.argval, spec.origin if spec else None)
    return found


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of the functions written within it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _held(function: types.FunctionType) -> list[Any]:
    """What its closure holds; a cell may be empty still."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            found.append(None)
    return found


def _written(kind: type) -> dict[str, Any]:
    """What of a class was written by hand."""
    parts = {name: part for name, part in vars(kind).items() if not isinstance(part, MACHINERY)}
    return {name: part for name, part in parts.items() if not name.startswith(("__", "_abc")) or callable(part) or hasattr(part, "__get__")}


def _slots(thing: Any) -> dict[str, Any]:
    """The values of an object's slots, those of its bases too."""
    named = [name for kind in type(thing).__mro__ for name, part in vars(kind).items() if isinstance(part, types.MemberDescriptorType)]
    return {name: getattr(thing, name) for name in named if hasattr(thing, name)}


def _of_a_library(kind: type) -> bool:
    """Whether a class was installed: what it does goes with its name."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return kind.__module__ == "builtins" or (module is not None and kind.__module__ != "__main__" and (file is None or _installed(file)))


def _installed(file: str) -> bool:
    return file.startswith((*LIBRARIES, "<frozen "))


def _file(name: str, file: str | None) -> bytes:
    """A module: its name, and what stands in it where it is the caller's own."""
    own = file and not _installed(file) and name != "__main__" and Path(file).is_file()
    return name.encode() + (hashlib.sha256(Path(file).read_bytes()).digest() if own and file else b"")
