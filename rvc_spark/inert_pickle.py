"""Read a pickle as data: the stream's own instructions are followed, but nothing it names is ever imported or called.

A pickle is a small program for a stack machine. Python's own machine looks names up in real modules and calls what it
finds; this one has no way to reach a module at all. A name stays a `Name`, an instance becomes a `Record` of its name,
arguments and state, and the only calls made are to the builders the caller hands in. `pickletools` (standard library,
pure decoding) splits the stream into opcodes; the machine below gives them meaning.

Three more differences from `pickle.Unpickler`, each a hole closed: the memo is a dictionary (a file cannot ask for two
billion memo slots), keys must be text or small numbers (hashing a tuple nested 100,000 deep overflows the C stack, and
chosen large integers all share one hash), and the number of opcodes is capped. The module refuses to know what the data
means: tensors and checkpoints are its callers'.
"""

from __future__ import annotations

import io
import pickletools
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_STREAM_BYTES = 16 * 1024**2  # hubert_base.pt needs 0.1 MiB; a dictionary of a large text corpus fits in a few
MAX_OPCODES = 400_000  # hubert_base.pt needs about 15,000; a second on a slow core
MAX_INTEGER_BITS = 128  # the largest honest one is the 77-bit magic number of torch's old container
MAX_KEY_BITS = 60  # below Python's hash modulus 2**61 - 1, so that different integers have different hashes
MAX_NAME_CHARACTERS = 200

Builder = Callable[[tuple[Any, ...]], Any]

# Standard-library names that honest checkpoints mention. They stay names; the list only keeps them from being refused.
_KNOWN_STDLIB = frozenset(
    "argparse.Namespace _codecs.encode copyreg._reconstructor copy_reg._reconstructor operator.getitem enum.Enum "
    "enum.IntEnum pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath datetime.datetime "
    "datetime.date datetime.timedelta decimal.Decimal fractions.Fraction types.SimpleNamespace uuid.UUID "
    "re._compile functools.partial".split()
)
_KNOWN_MODULES = frozenset({"collections", "typing"})
_KNOWN_BUILTINS = frozenset(
    "dict list tuple set frozenset str int float bool complex bytes bytearray object slice range type "
    "NoneType Ellipsis unicode long".split()
)
_BUILTIN_MODULES = frozenset({"builtins", "__builtin__"})
_TORCH_DATA = ("float", "int", "uint", "bool", "bfloat", "complex", "device", "_rebuild")
_PYTHON2_STDLIB = frozenset({"__builtin__", "commands", "copy_reg", "urllib2", "popen2", "os2", "exceptions"})


class PickleRefusal(ValueError):
    """The stream is damaged, over a limit, or asks for something no data file needs. Callers wrap it."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function the stream mentions; only its name, never the thing."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_SCALARS = (str, int, float, bool, bytes, type(None), Name)


@dataclass(slots=True, eq=False)
class Record:
    """What would have been an instance: the class name, the arguments, the state and the items it was given."""

    name: Name
    arguments: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)


def harmful(name: Name) -> bool:
    """Whether a name belongs to the running system (os.system, eval, torch.load ...), not to somebody's data class.

    Nothing would be called either way. Naming such a thing is the mark of a file made to attack its reader, and the
    reader should know before opening the same file with another program.
    """
    top = name.module.partition(".")[0]
    if name.module in _BUILTIN_MODULES:
        return name.name not in _KNOWN_BUILTINS
    if top in sys.stdlib_module_names or top in _PYTHON2_STDLIB:
        return name.module not in _KNOWN_MODULES and str(name) not in _KNOWN_STDLIB
    if top == "torch":  # its classes and dtypes are data, its functions (load, hub.load, jit ...) are not
        leaf = name.name.rpartition(".")[2]
        return not (leaf[:1].isupper() or leaf.startswith(_TORCH_DATA))
    return top in {"torchvision", "pip", "setuptools", "pkg_resources", "IPython", "webbrowser"}


class InertMachine:
    """Runs one pickle after another from a stream.

    Args:
        stream: the bytes, at most MAX_STREAM_BYTES; MAX_OPCODES is for all its pickles together.
        builders: name ("module.name") -> function of the argument tuple; the only calls ever made.
        persistent: what a persistent id stands for; raises PickleRefusal for one it does not know.
    """

    def __init__(self, stream: bytes, builders: Mapping[str, Builder], persistent: Callable[[Any], Any]) -> None:
        if len(stream) > MAX_STREAM_BYTES:
            raise PickleRefusal(f"its object tree takes {len(stream):,} bytes, over the limit of {MAX_STREAM_BYTES:,}")
        self._stream = io.BytesIO(stream)
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps_left = MAX_OPCODES

    @property
    def position(self) -> int:
        """Bytes consumed so far; after `load` this is where the next pickle or the raw data starts."""
        return self._stream.tell()

    def load(self) -> Any:
        """Follow one pickle to its STOP and return the object it describes.

        Raises:
            PickleRefusal: damaged stream, a limit reached, a harmful name, or a call the builders do not know.
        """
        self._stack, self._marks, self._memo = [], [], {}
        for opcode, argument in self._opcodes():
            self._steps_left -= 1
            if self._steps_left < 0:
                raise PickleRefusal(f"its object tree takes more than {MAX_OPCODES:,} steps to build")
            if opcode == "STOP":
                break
            step = _STEPS.get(opcode)
            if step is None:
                raise PickleRefusal(f"it uses the pickle instruction {opcode}, which no checkpoint needs")
            step(self, argument)
        if self._marks or len(self._stack) != 1:
            raise PickleRefusal("its object tree is damaged (values left over at the end)")
        return self._stack.pop()

    def _opcodes(self) -> Iterator[tuple[str, Any]]:
        try:
            for opcode, argument, _ in pickletools.genops(self._stream):
                yield opcode.name, argument
        except (ValueError, OverflowError, AssertionError) as problem:
            # what pickletools raises for unknown opcodes, lengths past the end, bad escapes and 4300-digit numbers
            if isinstance(problem, PickleRefusal):
                raise
            raise PickleRefusal(f"its object tree is damaged ({str(problem)[:80]})") from None

    # --- the stack ---------------------------------------------------------------------------------------------------

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise PickleRefusal("its object tree is damaged (a value is taken from an empty stack)")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise PickleRefusal("its object tree is damaged (a value is taken from an empty stack)")
        return self._stack[-1]

    def _literal(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise PickleRefusal(f"it holds an integer of {value.bit_length():,} bits")
        self._push(value)

    def _mark(self, _: Any) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise PickleRefusal("its object tree is damaged (a group ends that never began)")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _pop_op(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _memoize(self, slot: int | None) -> None:
        self._memo[len(self._memo) if slot is None else slot] = self._top()

    def _recall(self, slot: int) -> None:
        if slot not in self._memo:
            raise PickleRefusal("its object tree is damaged (it recalls a value it never stored)")
        self._push(self._memo[slot])

    # --- containers --------------------------------------------------------------------------------------------------

    def _tuple_of(self, size: int) -> None:
        self._push(tuple(reversed([self._pop() for _ in range(size)])))

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.items.extend(values)
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise PickleRefusal("its object tree is damaged (items are added to something that holds none)")

    def _add_items(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.items.extend(values)
        elif isinstance(target, set):
            target.update(_plain_keys(values))
        else:
            raise PickleRefusal("its object tree is damaged (items are added to something that is no set)")

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if len(values) % 2:
            raise PickleRefusal("its object tree is damaged (a key without a value)")
        if isinstance(target, Record):
            target.items.extend(zip(values[::2], values[1::2], strict=True))
        elif isinstance(target, dict):
            target.update(zip(_plain_keys(values[::2]), values[1::2], strict=True))
        else:
            raise PickleRefusal("its object tree is damaged (keys are set on something that has none)")

    def _pair(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _dict_of(self, _: Any) -> None:
        values = self._pop_mark()
        self._push({})
        self._set_items(values)

    # --- names and instances -----------------------------------------------------------------------------------------

    def _name(self, module: Any, name: Any) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleRefusal("its object tree is damaged (a class name that is not text)")
        if max(len(module), len(name)) > MAX_NAME_CHARACTERS or not (module + name).isprintable():
            raise PickleRefusal("its object tree is damaged (a class name that is too long or not printable)")
        made = Name(module, name)
        if harmful(made) and str(made) not in self._builders:
            raise PickleRefusal(
                f"it asks its reader to use {made}: a file that carries instructions instead of data (nothing was run)"
            )
        return made

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(self._name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self._push(self._name(module, name))

    def _call(self, target: Any, arguments: Any) -> None:
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise PickleRefusal("it calls something that is not the name of a class")
        builder = self._builders.get(str(target))
        self._push(Record(target, arguments) if builder is None else builder(arguments))

    def _reduce(self, _: Any) -> None:
        arguments, target = self._pop(), self._pop()
        self._call(target, arguments)

    def _new_with_keywords(self, _: Any) -> None:
        keywords, arguments, target = self._pop(), self._pop(), self._pop()
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise PickleRefusal("it calls something that is not the name of a class")
        self._push(Record(target, (arguments, keywords)))  # nested: copying a recalled tuple again and again adds up

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._call(self._name(module, name), tuple(self._pop_mark()))

    def _obj(self, _: Any) -> None:
        values = self._pop_mark()
        if not values:
            raise PickleRefusal("its object tree is damaged (an instance of nothing)")
        self._call(values[0], tuple(values[1:]))

    def _build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # an OrderedDict of weights carries `_metadata`, which nothing here needs
            raise PickleRefusal("it sets the inner state of something that is not an instance")

    def _persistent_id(self, _: Any) -> None:
        self._push(self._persistent(self._pop()))


def _plain_keys(keys: list[Any]) -> list[Any]:
    for key in keys:
        if not isinstance(key, _SCALARS) or (isinstance(key, int) and key.bit_length() > MAX_KEY_BITS):
            raise PickleRefusal("it uses something as a key that is neither text nor a plain number")
    return keys


_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT"
).split()

_STEPS: dict[str, Callable[[InertMachine, Any], None]] = {
    **dict.fromkeys(_LITERALS, InertMachine._literal),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), InertMachine._memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), InertMachine._recall),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), InertMachine._reduce),
    "NONE": lambda machine, _: machine._push(None),
    "NEWTRUE": lambda machine, _: machine._push(True),
    "NEWFALSE": lambda machine, _: machine._push(False),
    "EMPTY_LIST": lambda machine, _: machine._push([]),
    "EMPTY_TUPLE": lambda machine, _: machine._push(()),
    "EMPTY_DICT": lambda machine, _: machine._push({}),
    "EMPTY_SET": lambda machine, _: machine._push(set()),
    "MARK": InertMachine._mark,
    "POP": InertMachine._pop_op,
    "POP_MARK": lambda machine, _: machine._pop_mark() and None,
    "DUP": lambda machine, _: machine._push(machine._top()),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "DICT": InertMachine._dict_of,
    "FROZENSET": lambda machine, _: machine._push(frozenset(_plain_keys(machine._pop_mark()))),
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_mark()),
    "SETITEM": InertMachine._pair,
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "GLOBAL": InertMachine._global,
    "STACK_GLOBAL": InertMachine._stack_global,
    "INST": InertMachine._inst,
    "OBJ": InertMachine._obj,
    "NEWOBJ_EX": InertMachine._new_with_keywords,
    "BUILD": InertMachine._build,
    "BINPERSID": InertMachine._persistent_id,
}
