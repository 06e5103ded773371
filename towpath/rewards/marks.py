"""A mark of what a function does: of its code and of all that it reads, the same wherever its file lies and in whichever process."""

import enum
import functools
import hashlib
import pickle
import site
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

OURS = str(Path(__file__).parent.parent)
LIBRARIES = tuple({*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")), *site.getsitepackages(), OURS})
WRITTEN = (types.FunctionType, property, staticmethod, classmethod)
"""What of a class was written by hand, whatever its name; machinery has names between underscores."""
PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, range, slice, type(...))


class Untold(Exception):
    """Something of it cannot be written down: a lock, a connection, a handle."""


def mark(thing: Any) -> str:
    """Twelve signs that differ where the code, a default, a closure, a global that it names or an object's state does."""
    digest = hashlib.sha256()
    for part in _parts(thing, {}):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:12]


def _parts(thing: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """Bytes that tell the thing, its parts one after the other; what has been met before by its number."""
    yield type(thing).__qualname__.encode()
    if isinstance(thing, PLAIN):
        yield repr(thing).encode("utf-8", "surrogatepass")
        return
    if id(thing) in seen:
        yield str(list(seen).index(id(thing))).encode()
        return
    seen[id(thing)] = thing  # held, so that no other takes its number
    for part in _inside(thing, seen):
        yield from [part] if isinstance(part, bytes) else _parts(part[0], seen)


def _inside(thing: Any, seen: dict[int, Any]) -> Iterator[bytes | tuple[Any]]:
    """Bytes, and parts to be told in turn, each in a tuple of its own."""
    outer: Any = thing
    if isinstance(thing, types.CodeType):
        yield thing.co_code
        yield from ((part,) for part in (thing.co_names, thing.co_freevars, thing.co_consts))
    elif isinstance(thing, types.FunctionType):
        yield f"{thing.__module__}.{thing.__qualname__}".encode()
        if not _of_a_library(thing):
            named = {name: thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__}
            yield from ((part,) for part in (thing.__code__, thing.__defaults__, thing.__kwdefaults__, _held(thing), named))
    elif isinstance(thing, types.ModuleType | types.BuiltinFunctionType) or (isinstance(thing, type) and _of_a_library(thing)):
        yield f"{getattr(thing, '__module__', '')}.{thing.__name__}".encode()
    elif isinstance(thing, type):
        written = {name: part for name, part in vars(thing).items() if isinstance(part, WRITTEN) or not name.startswith(("__", "_abc"))}
        yield from ((part,) for part in (written, *thing.__bases__))
    elif isinstance(thing, types.MethodType):
        yield from ((thing.__func__,), (thing.__self__,))
    elif isinstance(thing, functools.partial):
        yield from ((thing.func,), (thing.args,), (thing.keywords,))
    elif isinstance(thing, list | tuple):
        yield from ((part,) for part in thing)
    elif isinstance(thing, dict | types.MappingProxyType):
        yield from (part for key in thing for part in ((key,), (thing[key],)))
    elif isinstance(thing, set | frozenset):
        yield from sorted(b"".join(_parts(part, dict(seen))) for part in thing)
    elif isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        yield f"{thing.dtype}{thing.shape}".encode()
        yield np.ascontiguousarray(thing).tobytes()
    elif hasattr(thing, "detach"):  # a tensor of torch, which is not imported for it
        yield str(thing.dtype).encode()
        yield (outer.detach().cpu().double().numpy(),)
    elif isinstance(thing, property | staticmethod | classmethod):
        yield from ((part,) for part in (getattr(thing, name, None) for name in ("__func__", "fget", "fset")))
    elif hasattr(thing, "named_parameters"):  # a module of torch
        yield repr(thing).encode()
        yield from ((type(thing),), (dict(outer.state_dict()),))
    elif hasattr(thing, "__dict__"):
        yield from ((type(thing),), (vars(thing),))
    else:
        try:
            yield pickle.dumps(thing)
        except Exception as error:  # whatever a type of somebody else's raises
            raise Untold(str(error)) from None


def _names(code: types.CodeType) -> list[str]:
    """Names that code and the functions written within it look up."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return sorted({*code.co_names, *inner})


def _held(function: types.FunctionType) -> list[Any]:
    """What its closure holds; a cell may be empty still."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            found.append(None)
    return found


def _of_a_library(thing: Any) -> bool:
    """Whether it was installed: what it does goes with its name."""
    module = sys.modules.get(thing.__module__)
    file = getattr(module, "__file__", None)
    return thing.__module__ == "builtins" or (module is not None and thing.__module__ != "__main__" and (file is None or file.startswith(LIBRARIES)))
