"""A mark of what a function does: of its code and of all that it reads, the same wherever its file lies and in
whichever process."""

import collections
import concurrent.futures
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
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from pathlib import Path
from typing import Any

import numpy as np

DEEP = 5
"""Packages within packages."""
FOLDERS = {
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
}
LIBRARIES = tuple(folder + os.sep for folder in (*FOLDERS, str(Path(__file__).parent.parent)))
PLAIN = (type(None), bool, float, complex, str, bytes, range, slice, type(...), type(NotImplemented))
HANDLES = (type(threading.Lock()), type(threading.RLock()), io.IOBase, concurrent.futures.Executor, type(os.environ))
"""Which one it is does not change what is computed."""
COUNTERS = ("call_count", "deprecation_warnings")
"""What objects of libraries write down of their being used."""
MACHINERY = (types.MemberDescriptorType, types.GetSetDescriptorType)


class Untold(Exception):
    """Something of it cannot be written down: a connection, a running generator."""


def mark(thing: Any) -> str:
    """Twelve signs that differ where the code, a default, a closure, a global that it names or an object's state
    does."""
    return _digest(_parts(thing, {})).hex()[:12]


def _digest(parts: Iterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


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
        if isinstance(thing, set | frozenset):
            for kind in sorted({type(part) for part in thing}, key=lambda kind: kind.__qualname__):
                yield from _parts(kind, seen)
            yield from sorted(
                _digest(_parts(part, seen if isinstance(part, PLAIN) or type(part) is int else dict(seen)))
                for part in thing
            )
        yield b")"  # no value is told by this alone


def _inside(thing: Any) -> Iterator[bytes | tuple[Any]]:
    """Bytes, and parts to be told in turn, each in a tuple of its own."""
    torch = sys.modules.get("torch")
    if isinstance(thing, types.CodeType):
        yield thing.co_code + getattr(thing, "co_exceptiontable", b"")
        yield from _each(thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_cellvars, thing.co_consts)
        yield from _each(thing.co_argcount, thing.co_posonlyargcount, thing.co_kwonlyargcount, thing.co_flags)
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
    elif isinstance(thing, HANDLES) or thing is random._inst or thing is np.random.mtrand._rand:  # pyright: ignore[reportAttributeAccessIssue]
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
        state = {name: part for name, part in vars(thing).items() if not name.startswith("_") and (own or _small(part))}
        said = [
            told.to_dict()
            for told in map(vars(thing).get, ("config", "generation_config"))
            if told is not None and hasattr(told, "to_dict")
        ]
        yield from _each(type(thing), state, said, thing._parameters, thing._buffers, thing._modules)


def _of_an_object(thing: Any) -> Iterator[bytes | tuple[Any]]:
    """What a container holds; the class and the state of an object whose class is the caller's own; a library's as
    it pickles itself, but for those that are known."""
    own = not _of_a_library(type(thing))
    held = True
    if isinstance(thing, list | tuple | collections.deque | KeysView | ValuesView | ItemsView):
        yield from _each(*thing)
    elif isinstance(thing, dict | types.MappingProxyType):
        yield from _each(getattr(thing, "default_factory", None), *(part for pair in thing.items() for part in pair))
    elif isinstance(thing, set | frozenset):
        pass  # its members are told by whoever asks
    elif isinstance(thing, np.ndarray):
        yield from _each(thing.shape, *(thing.ravel().tolist() if thing.dtype.hasobject else (pickle.dumps(thing),)))
    elif isinstance(thing, re.Pattern) or type(thing).__module__ in ("regex", "_regex"):
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
        state = {name: part for name, part in getattr(thing, "__dict__", {}).items() if not _lazy(type(thing), name)}
        yield from _each(type(thing), state, _slots(thing))
    elif not held and hasattr(thing, "__dict__"):
        said = (
            thing.__getstate__()
            if getattr(type(thing), "__getstate__", None) is not getattr(object, "__getstate__", None)
            else None
        )
        state = {name: part for name, part in vars(thing).items() if name not in COUNTERS}
        yield from _each(type(thing), state, _slots(thing), thing.args if isinstance(thing, BaseException) else said)
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
        names = sorted(set(code.co_names))
        found |= {name: function.__globals__[name] for name in names if name in function.__globals__}
        within = dict(zip(function.__code__.co_freevars, _held(function), strict=True))
        for name, module in {**within, **found}.items():
            if isinstance(module, types.ModuleType):
                found |= _named(module, names, f"{name}.")
        for name in {step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}:
            for whole in (name, f"{function.__globals__.get('__package__') or ''}.{name}"):
                found[f"import {whole}"] = _file(whole, _origin(whole))
    return dict(sorted(found.items()))


def _named(module: types.ModuleType, names: list[str], prefix: str) -> dict[str, Any]:
    """What code names of a module of the caller's own, and of the modules within."""
    if not (file := getattr(module, "__file__", None)) or _installed(file):
        return {}
    found = {f"{prefix}{name}": vars(module)[name] for name in names if name in vars(module)}
    inner = [(name, part) for name, part in found.items() if isinstance(part, types.ModuleType) and part is not module]
    for name, part in inner:
        found |= _named(part, names, f"{name}.") if prefix.count(".") < DEEP else {}
    return found


def _origin(module: str) -> str | None:
    """The file of a module that code imports when it runs; a library's, or one that is not there, is as good as
    none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return spec.origin if spec else None


def _small(part: Any) -> bool:
    """A number, a text, or a few of them."""
    return isinstance(part, (*PLAIN, int)) or (
        isinstance(part, tuple | list) and all(isinstance(one, (*PLAIN, int)) for one in part)
    )


def _lazy(kind: type, name: str) -> bool:
    """Whether an attribute is reckoned when first asked for."""
    return isinstance(getattr(kind, name, None), functools.cached_property)


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
    return {
        name: part
        for name, part in parts.items()
        if not name.startswith(("__", "_abc")) or callable(part) or hasattr(part, "__get__")
    }


def _slots(thing: Any) -> dict[str, Any]:
    """The values of an object's slots, those of its bases too."""
    named = [
        name
        for kind in type(thing).__mro__
        for name, part in vars(kind).items()
        if isinstance(part, types.MemberDescriptorType)
    ]
    return {name: getattr(thing, name) for name in named if hasattr(thing, name)}


def _of_a_library(kind: type) -> bool:
    """Whether a class was installed: what it does goes with its name."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return kind.__module__ == "builtins" or (
        module is not None and kind.__module__ != "__main__" and (file is None or _installed(file))
    )


def _installed(file: str) -> bool:
    return file.startswith((*LIBRARIES, "<frozen "))


def _file(name: str, file: str | None) -> bytes:
    """A module: its name, and what stands in it where it is the caller's own."""
    own = file and not _installed(file) and name != "__main__" and Path(file).is_file()
    return name.encode() + (hashlib.sha256(Path(file).read_bytes()).digest() if own and file else b"")
