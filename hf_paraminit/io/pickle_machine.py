"""An interpreter for the part of the pickle language that checkpoints need, in which nothing can be called.

Pickle is a small stack language. The standard loader looks up any importable object that a file names and calls it.
This machine instead knows a fixed table of (module, name) pairs, each of which stands for a few lines of our own code,
and about forty opcodes of protocols 2 to 5. Everything else ends the run with `UnsafeFileError` (the file asks for
code, a class, or more work than the limits allow) or `CheckpointError` (the bytes make no sense).

Byte strings are never copied: they are slices of the memory the machine reads from. Work is bounded by a `Budget`;
each opcode costs time in proportion to the bytes it consumes, so a file cannot hide long computations behind shared
values.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from hf_paraminit.errors import CheckpointError, UnsafeFileError

MAX_OPCODES = 1_000_000  # a file spends about 30 per tensor, or 100 if the storage is a nested file
MAX_INT_BYTES = 16  # the longest integer in use is the 10-byte magic number of old torch files
MAX_NAME_BYTES = 256  # of a module or a class
SUPPORTED_PROTOCOLS = range(2, 6)

_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CALLING_OPCODES = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}


@dataclass(slots=True)
class Budget:
    """Work that is left for one file; all machines that read parts of it draw from the same budget.

    Args:
        text_bytes: bytes that may be made by re-encoding text, at most the size of the file.
        opcodes: instructions that may be interpreted.
    """

    text_bytes: int
    opcodes: int = MAX_OPCODES

    def spend_opcode(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise UnsafeFileError(f"its pickle has more than {MAX_OPCODES:,} instructions")

    def spend_text(self, num_bytes: int) -> None:
        self.text_bytes -= num_bytes
        if self.text_bytes < 0:
            raise UnsafeFileError("it decodes the same text again and again, to more bytes than the file has")


@dataclass(frozen=True, slots=True, eq=False)
class Callee:
    """What a whitelisted function or class becomes: `build` is our own code, given the arguments as a tuple."""

    name: str
    build: Callable[[tuple[Any, ...]], object]


@dataclass(frozen=True, slots=True, eq=False)
class Attributes:
    """An instance of a class of plain attributes, reduced to the attributes."""

    values: dict[str, object] = field(default_factory=dict)


class Discarded:
    """Stands where a value was that is of no use to us, such as a numpy scalar."""


Whitelist = Mapping[tuple[str, str], object]


def refuse_persistent_id(identifier: object) -> NoReturn:
    """The `persistent_load` of pickles that have no business referring to anything outside themselves."""
    raise UnsafeFileError("it refers to an object outside its pickle (a persistent id) where none is allowed")


class PickleMachine:
    """Interprets one pickle.

    Args:
        data: bytes of format "B" that hold the pickle; results keep slices of it.
        whitelist: (module, name) to the value that the global stands for: a `Callee`, or a constant.
        budget: shared allowance of instructions and text.
        position: where the pickle begins in `data`, in bytes; after `run`, where it ended.
        persistent_load: turns the argument of BINPERSID into a value.
    """

    def __init__(
        self,
        data: memoryview,
        whitelist: Whitelist,
        budget: Budget,
        *,
        position: int = 0,
        persistent_load: Callable[[object], object] = refuse_persistent_id,
    ) -> None:
        self.position = position
        self._data = data
        self._whitelist = whitelist
        self._budget = budget
        self._persistent_load = persistent_load
        self._memo: dict[int, Any] = {}
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []

    def run(self) -> Any:
        """Interpret instructions up to STOP and return the value that is left on the stack.

        Raises:
            CheckpointError: truncated or malformed bytes.
            UnsafeFileError: a name outside the whitelist, an instruction that calls code, or an exhausted budget.
        """
        while True:
            self._budget.spend_opcode()
            opcode = self._take(1)[0]
            if opcode == ord("."):
                return self._finish()
            action = _ACTIONS.get(opcode)
            if action is None:
                self._refuse_opcode(opcode)
            action(self)

    def _finish(self) -> Any:
        if len(self._stack) != 1 or self._outer_stacks:
            raise self._damaged("the pickle ends with an unfinished stack")
        return self._stack.pop()

    def _refuse_opcode(self, opcode: int) -> NoReturn:
        name = _OPCODE_NAMES.get(opcode)
        if name is None:
            raise self._damaged(f"0x{opcode:02x} is no pickle instruction")
        if name == "INST":
            module, attribute = self._take_line(), self._take_line()
            raise UnsafeFileError(f"it asks for {module}.{attribute} to be called (instruction INST)")
        if name in _CALLING_OPCODES:
            raise UnsafeFileError(f"it contains the instruction {name}, which runs code or reaches outside the file")
        raise self._damaged(f"the instruction {name} does not occur in checkpoints")

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{reason} (before byte {self.position:,} of the data)")

    # Reading arguments that follow an opcode.

    def _take(self, num_bytes: int) -> memoryview:
        end = self.position + num_bytes
        if end > len(self._data):
            raise self._damaged(f"{num_bytes:,} bytes expected, {len(self._data) - self.position:,} left: truncated")
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def _take_uint(self, num_bytes: int) -> int:
        return int.from_bytes(self._take(num_bytes), "little")

    def _take_text(self, num_bytes: int) -> str:
        try:
            return str(self._take(num_bytes), "utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a text is not UTF-8") from error

    def _take_line(self) -> str:
        window = bytes(self._data[self.position : self.position + MAX_NAME_BYTES])
        length = window.find(b"\n")
        if length < 0:
            raise self._damaged(f"a name of more than {MAX_NAME_BYTES} bytes, or cut off")
        text = self._take_text(length)
        self.position += 1
        return text

    # The stack.

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise self._damaged("an instruction takes a value from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise self._damaged(f"an instruction adds items to something that is not a {kind.__name__}")
        return self._stack[-1]

    def _pop_tuple(self, length: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(length)]))

    def _open_mark(self) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        if not self._outer_stacks:
            raise self._damaged("an instruction needs a mark, but none was set")
        items = self._stack
        self._stack = self._outer_stacks.pop()
        return items

    # Instructions.

    def _check_protocol(self) -> None:
        protocol = self._take(1)[0]
        if protocol not in SUPPORTED_PROTOCOLS:
            raise self._damaged(f"pickle protocol {protocol}, expected 2 to 5")

    def _check_frame(self) -> None:
        """Frames are a hint for buffered reading; a length that leaves the data is a sign of damage."""
        length = self._take_uint(8)
        if length > len(self._data) - self.position:
            raise self._damaged(f"a frame of {length:,} bytes, {len(self._data) - self.position:,} left: truncated")

    def _push_long(self) -> None:
        length = self._take(1)[0]
        if length > MAX_INT_BYTES:
            raise UnsafeFileError(f"it holds an integer of {length} bytes, at most {MAX_INT_BYTES} are allowed")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _refuse_long4(self) -> NoReturn:
        raise UnsafeFileError(
            f"it holds an integer of {self._take_uint(4):,} bytes, at most {MAX_INT_BYTES} are allowed"
        )

    def _append(self) -> None:
        value = self._pop()
        self._top(list).append(value)

    def _extend(self) -> None:
        items = self._pop_to_mark()
        self._top(list).extend(items)

    def _set_item(self) -> None:
        key, value = self._pop_tuple(2)
        self._store(self._top(dict), key, value)

    def _set_items(self) -> None:
        items = self._pop_to_mark()
        if len(items) % 2:
            raise self._damaged("a dictionary with a key that has no value")
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._store(target, key, value)

    def _store(self, target: dict[Any, Any], key: object, value: object) -> None:
        # Longer integers, floats and tuples could be chosen so that their hashes collide or take exponential time.
        if not (isinstance(key, str) or (type(key) is int and -(2**63) <= key < 2**63)):
            raise self._damaged(f"a dictionary key of type {type(key).__name__}, expected text or a 64-bit integer")
        if key in target:
            raise self._damaged(f"the dictionary key {key!r:.80} occurs twice")
        target[key] = value

    def _memoize(self, index: int) -> None:
        if not self._stack:
            raise self._damaged("an instruction remembers the top of an empty stack")
        self._memo[index] = self._stack[-1]

    def _recall(self, index: int) -> None:
        if index not in self._memo:
            raise self._damaged(f"an instruction recalls entry {index:,} of the memo, which was never set")
        self._push(self._memo[index])

    def _push_global(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise self._damaged("a global whose module or name is not text")
        module = "builtins" if module == "__builtin__" else module  # the spelling of protocol 2
        if (module, name) not in self._whitelist:
            raise UnsafeFileError(
                f"it asks for {module:.80}.{name:.80}, expected only tensors, storages and plain containers"
            )
        self._push(self._whitelist[module, name])

    def _push_stack_global(self) -> None:
        self._push_global(*self._pop_tuple(2))

    def _call(self) -> None:
        """REDUCE and NEWOBJ alike: run our stand-in for the function or class on its arguments."""
        callee, arguments = self._pop_tuple(2)
        if not isinstance(callee, Callee):
            raise UnsafeFileError(f"it asks to call {describe(callee)}, which is not callable here")
        if not isinstance(arguments, tuple):
            raise self._damaged(f"{callee.name} is called without a tuple of arguments")
        self._push(callee.build(arguments))

    def _build(self) -> None:
        """Set the state of the value on top: attributes are kept, the bookkeeping of torch and numpy is dropped."""
        state = self._pop()
        target = self._stack[-1] if self._stack else None
        if isinstance(target, Discarded):
            return
        if not isinstance(state, dict):
            raise self._damaged(f"a state of type {describe(state)} for {describe(target)}")
        if isinstance(target, Attributes):
            for key, value in state.items():
                self._store(target.values, key, value)
        elif not (isinstance(target, dict) and state.keys() <= {"_metadata"}):  # written by nn.Module.state_dict
            raise UnsafeFileError(f"it sets attributes of {describe(target)}")

    def _push_persistent(self) -> None:
        self._push(self._persistent_load(self._pop()))


def describe(value: object) -> str:
    """Name a value in a message by its kind only: its printed form could be huge."""
    if isinstance(value, Callee):
        return value.name
    return type(value).__name__


_ACTIONS: dict[int, Callable[[PickleMachine], None]] = {
    0x80: PickleMachine._check_protocol,
    0x95: PickleMachine._check_frame,
    ord("("): PickleMachine._open_mark,
    # constants and numbers
    ord("N"): lambda m: m._push(None),
    0x88: lambda m: m._push(True),
    0x89: lambda m: m._push(False),
    ord("K"): lambda m: m._push(m._take_uint(1)),
    ord("M"): lambda m: m._push(m._take_uint(2)),
    ord("J"): lambda m: m._push(int.from_bytes(m._take(4), "little", signed=True)),
    ord("G"): lambda m: m._push(struct.unpack(">d", m._take(8))[0]),
    0x8A: PickleMachine._push_long,
    0x8B: PickleMachine._refuse_long4,
    # text and bytes
    0x8C: lambda m: m._push(m._take_text(m._take_uint(1))),
    ord("X"): lambda m: m._push(m._take_text(m._take_uint(4))),
    0x8D: lambda m: m._push(m._take_text(m._take_uint(8))),
    ord("C"): lambda m: m._push(m._take(m._take_uint(1))),
    ord("B"): lambda m: m._push(m._take(m._take_uint(4))),
    0x8E: lambda m: m._push(m._take(m._take_uint(8))),
    # tuples, lists, dictionaries
    ord(")"): lambda m: m._push(()),
    0x85: lambda m: m._push(m._pop_tuple(1)),
    0x86: lambda m: m._push(m._pop_tuple(2)),
    0x87: lambda m: m._push(m._pop_tuple(3)),
    ord("t"): lambda m: m._push(tuple(m._pop_to_mark())),
    ord("]"): lambda m: m._push([]),
    ord("a"): PickleMachine._append,
    ord("e"): PickleMachine._extend,
    ord("}"): lambda m: m._push({}),
    ord("s"): PickleMachine._set_item,
    ord("u"): PickleMachine._set_items,
    # memo
    ord("q"): lambda m: m._memoize(m._take_uint(1)),
    ord("r"): lambda m: m._memoize(m._take_uint(4)),
    0x94: lambda m: m._memoize(len(m._memo)),
    ord("h"): lambda m: m._recall(m._take_uint(1)),
    ord("j"): lambda m: m._recall(m._take_uint(4)),
    # names, calls, objects
    ord("c"): lambda m: m._push_global(m._take_line(), m._take_line()),
    0x93: PickleMachine._push_stack_global,
    ord("R"): PickleMachine._call,
    0x81: PickleMachine._call,
    ord("b"): PickleMachine._build,
    ord("Q"): PickleMachine._push_persistent,
}
