"""What makes a setting the one it is, told alike in two processes, so that records compare.

Used by `training`, which takes up an interrupted run only with the settings it began with.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity(value: Any, inside: tuple[int, ...] = ()) -> Any:
    """What makes a setting this one, as JSON: the same for equal settings in two processes.

    Plain values, arrays and containers are told by what they hold; functions by name, code,
    defaults and the values they close over; modules, dataclasses and callable objects by class
    and attributes; other objects by their ``repr`` or, where it holds an address, by class and
    attributes. What says nothing of itself, such as a generator of NumPy, is told by its class.
    The ``repr`` of a `v2.Transform` would not do: it leaves out a ToDtype's dtype, for one.

    Args:
        value: Anything.
        inside: The ``id`` of every object that `value` lies in, so that a cycle ends.
    """
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, type | types.ModuleType):
        return _name(value)
    if id(value) in inside:
        return "itself"
    of = functools.partial(identity, inside=(*inside, id(value)))
    if isinstance(value, list | tuple):
        return [of(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(of, value), key=json.dumps)
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: of(part) for key, part in value.items()}
        return sorted(([of(key), of(part)] for key, part in value.items()), key=json.dumps)
    return {_name(value): of(_parts(value))}


def workings(module: torch.nn.Module) -> Any:
    """What a module does with its weights, as JSON: its parts, their settings, their code."""
    forwards = [type(part).forward for part in module.modules()]
    # The same class is __main__'s in a script and its file's where it is imported: no names here.
    code = [identity(_parts(f) if isinstance(f, types.FunctionType) else f) for f in forwards]
    return [_ADDRESS.sub("", repr(module)), code]


def _parts(value: Any) -> Any:
    """What an object consists of, as far as it can be had, in simpler things."""
    attributes = getattr(value, "__dict__", {})
    if isinstance(value, types.FunctionType):
        free = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        bound = {name: _content(cell) for name, cell in free}
        return [value.__code__, value.__defaults__, value.__kwdefaults__, bound]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return [str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()]
    if isinstance(value, np.ndarray | np.generic):
        data = value.tolist() if value.dtype.hasobject else value.tobytes()
        return [str(value.dtype), value.shape, data]
    if isinstance(value, torch.nn.Module):
        own = {k: v for k, v in attributes.items() if k not in _OF_EVERY_MODULE}
        return [own, value._parameters, value._buffers, value._modules]
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value) if f.compare}
    if callable(value) and attributes:
        return attributes
    own_words = type(value).__repr__ is not object.__repr__ and repr(value)
    return own_words if own_words and not _ADDRESS.search(own_words) else attributes


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is bound later
        return None


def _name(value: Any) -> str:
    """Module and qualified name of a class or function, or of what the object is one of."""
    if isinstance(value, types.CodeType):
        return value.co_qualname
    if isinstance(value, types.ModuleType):
        return value.__name__
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
