"""The object tree of a torch.save pickle, with a description in place of each tensor and nothing else than data.

Stricter than `inert_pickle` alone: a class that is no tensor is refused on sight instead of becoming a record, because
torch's own loader will follow the same bytes afterwards and it would, for instance, really make a `bytearray(10**12)`.
Refuses to know containers (zip or stream) and what tensors mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from rvc_spark.inert_pickle import Builder, InertMachine, Name, PickleRefusal

MAX_DIMENSIONS = 8
MAX_COUNT = 2**40
MAX_DEPTH = 12
MAX_NODES = 200_000  # when shared branches are counted each time they are met
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

STORAGE_TYPES = {
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# Who leaves classes of these modules in a checkpoint: (module prefix, what the file is).
_MAKERS = (
    ("fairseq", "a fairseq checkpoint such as the content encoder hubert_base.pt"),
    ("omegaconf", "a fairseq or Hydra checkpoint such as a content encoder"),
    ("utils.HParams", "a GPT-SoVITS or so-vits-svc model"),
    ("utils.DictToAttrRecursive", "a GPT-SoVITS model"),
    ("pytorch_lightning", "a Lightning training checkpoint"),
    ("lightning", "a Lightning training checkpoint"),
    ("numpy", "pickled numpy data"),
    ("torch.nn", "a whole pickled network"),
    ("models", "a whole pickled network"),
    ("sklearn", "a pickled scikit-learn object"),
)


@dataclass(frozen=True, slots=True)
class StorageSize:
    """A run of `count` numbers of one type."""

    dtype: torch.dtype
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorNote:
    """A tensor that has not been read, known to lie inside its storage."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    size: StorageSize


def foreign(name: Name) -> NoReturn:
    """Refuse a class that is neither a tensor nor a container, saying whose it probably is. Nothing was imported."""
    full = str(name)
    maker = next((what for prefix, what in _MAKERS if full.startswith(prefix)), None)
    kind = f"; it looks like {maker}" if maker else ""
    raise PickleRefusal(f"it holds an object of the class {full}{kind}; only tensors, text and numbers are read")


class _TensorsOnly(dict[str, Builder]):
    """The builders of tensors and dicts; asking for any other is the refusal."""

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self:
            module, _, leaf = key.rpartition(".")
            foreign(Name(module, leaf))
        return self[key]


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise PickleRefusal("it describes a tensor by something that is not a list of sizes")
    if not all(type(value) is int and 0 <= value < MAX_COUNT for value in values):
        raise PickleRefusal("it describes a tensor with a negative or impossible size")
    return tuple(values)


def _tensor(arguments: tuple[Any, ...]) -> TensorNote:
    """Arguments of _rebuild_tensor_v2: storage, offset, shape, stride, requires_grad, hooks[, metadata]."""
    if not 4 <= len(arguments) <= 7 or not isinstance(arguments[0], _Storage):
        raise PickleRefusal("it describes a tensor without its storage")
    storage, (offset,) = arguments[0], _sizes([arguments[1]])
    shape, stride = _sizes(arguments[2]), _sizes(arguments[3])
    if len(shape) != len(stride):
        raise PickleRefusal("it describes a tensor whose sizes and strides differ in number")
    count, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        count *= size
        last += (size - 1) * step
    # count <= storage also forbids stride-0 views, which would turn one stored number into terabytes when converted
    if count and (last >= storage.size.count or count > storage.size.count):
        raise PickleRefusal(f"it describes a tensor of shape {list(shape)} that is larger than its stored data")
    return TensorNote(storage.size.dtype, shape)


def _parameter(arguments: tuple[Any, ...]) -> TensorNote:
    if not arguments or not isinstance(arguments[0], TensorNote):
        raise PickleRefusal("it describes a parameter that is not a tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:  # since Python 3 the items are set one by one afterwards
        raise PickleRefusal("it fills a dictionary in a way no checkpoint does")
    return {}


_BUILDERS = _TensorsOnly(
    {
        "collections.OrderedDict": _ordered_dict,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
    }
)


class _Storages:
    """Remembers every storage the pickle mentions, and that it is mentioned the same way each time."""

    def __init__(self) -> None:
        self.found: dict[str, StorageSize] = {}

    def __call__(self, identity: Any) -> _Storage:
        """Persistent id of torch.save: ("storage", type, key, location, count[, None])."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise PickleRefusal("it refers to outside data in a way torch.save never does")
        kind, key, _, count = identity[1:5]
        dtype = STORAGE_TYPES.get(kind.name) if isinstance(kind, Name) and kind.module == "torch" else None
        if dtype is None:
            raise PickleRefusal(f"it stores numbers of a type that is not read ({str(kind)[:60]})")
        if not isinstance(key, str) or not key.isdecimal() or len(key) > 24 or (len(identity) == 6 and identity[5]):
            raise PickleRefusal("it refers to stored numbers in a way torch.save never does")
        size = StorageSize(dtype, *_sizes([count]))
        if self.found.setdefault(key, size) != size:
            raise PickleRefusal(f"it describes storage {key} in two different ways")
        return _Storage(key, size)


def _only_data(tree: Any) -> Any:
    """Refuse what is left over: bare class names, bytes, sets, storages; and trees that unfold without end."""
    budget = MAX_NODES
    stack = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        budget -= 1
        if budget < 0 or depth > MAX_DEPTH:
            raise PickleRefusal(f"its object tree unfolds into more than {MAX_NODES:,} objects or {MAX_DEPTH} levels")
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str | int):
                    raise PickleRefusal("it uses something as a key that is neither text nor a whole number")
            stack.extend((value, depth + 1) for value in node.values())
        elif isinstance(node, list | tuple):
            stack.extend((value, depth + 1) for value in node)
        elif isinstance(node, Name):
            foreign(node)
        elif not (node is None or isinstance(node, str | int | float | TensorNote)):
            raise PickleRefusal(f"it holds a {type(node).__name__.strip('_')}; only tensors, text and numbers are read")
    return tree


def pickle_outline(data: bytes) -> tuple[Any, Mapping[str, StorageSize]]:
    """(object tree, storages by key) of the data.pkl of a torch zip. Raises PickleRefusal."""
    storages = _Storages()
    tree = InertMachine(data, _BUILDERS, storages).load()
    return _only_data(tree), storages.found


def legacy_outline(data: bytes) -> tuple[Any, int]:
    """(object tree, bytes the whole file must have) of a torch.save stream from before torch 1.6.

    `data`: the first megabytes of the file. Raises PickleRefusal.
    """
    storages = _Storages()
    machine = InertMachine(data, _BUILDERS, storages)
    if machine.load() != LEGACY_MAGIC or machine.load() != LEGACY_PROTOCOL:
        raise PickleRefusal("it is a pickle, but not one that torch.save wrote")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleRefusal("its numbers are not stored in little-endian order")
    tree = _only_data(machine.load())
    keys = machine.load()
    if not isinstance(keys, list) or set(map(str, keys)) != set(storages.found) or len(keys) != len(storages.found):
        raise PickleRefusal("its list of stored data is damaged")
    return tree, machine.position + sum(8 + size.bytes for size in storages.found.values())
