"""Reads pickles as plain data, by an interpreter of their opcodes that makes no Python objects.

Python's own unpickler imports what a file names, and lets the file call and change it. Here a file
only gets what its reader allows by name, and everything else that it makes is new: text, numbers,
bytes, lists, tuples, dictionaries and `Instance`.

What a file may cost: each opcode takes at most some 200 bytes, texts at most five times their
length, and opcodes, arguments and copied entries together at most `limit` steps. Depth costs no
stack, since nothing walks through what was made: only texts are keys, and nothing is compared.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

_LONGEST_NAME = 1000  # letters of a module and a name in it


class Instance:
    """An object that a file makes: it holds the state that the file gives it, once."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state: Any = None


class Call(NamedTuple):
    """A function that a file may call; as a value without state, it cannot be changed."""

    function: Callable[..., Any]


def load(
    file: BinaryIO,
    allowed: Callable[[str], Any],
    *,
    limit: int,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Returns the object of the pickle at the position of `file`, which is then at its end.

    Entries of dictionaries whose keys are not text are left out, as are attributes of dictionaries.
    An OrderedDict is a dictionary.

    Args:
      file: the bytes, from the first opcode on.
      allowed: returns what stands for a name such as "torch.Size": a `Call` or a plain value. It
        raises an error for all other names.
      limit: the most steps.
      persistent: returns what stands for a persistent id, a tuple; by default these are refused.

    Raises:
      ValueError: the pickle is damaged, takes more steps, or uses another feature of pickle.
      Exception: what `allowed`, `persistent` and the functions in a `Call` raise.
    """
    return _Machine(allowed, limit, persistent).run(file)


class _Machine:
    def __init__(
        self,
        allowed: Callable[[str], Any],
        limit: int,
        persistent: Callable[[Any], Any] | None,
    ):
        self._allowed, self._limit, self._persistent = allowed, limit, persistent
        self._steps = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}

    def run(self, file: BinaryIO) -> Any:
        # `genops` reads lengths that a file claims from the file, before anything has that size.
        for opcode, argument, position in pickletools.genops(file):
            self._spend(1)
            name = opcode.name
            try:
                if name in _VALUES:
                    self._stack.append(argument)
                elif name in _NEW:
                    self._stack.append(_NEW[name]())
                elif name == "STOP":
                    return self._stack.pop()
                elif name in _OPERATIONS:
                    _OPERATIONS[name](self, argument)
                elif name not in _IGNORED:
                    raise ValueError(f"it uses {name}, which is not a way to write plain data")
            except (IndexError, KeyError, TypeError):
                raise ValueError(f"{name} at byte {position} does not fit what is there") from None
        raise ValueError("it has no end")

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > self._limit:
            raise ValueError(f"it takes more than {self._limit:,} steps")

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _target(self, kind: type) -> Any:
        target = self._stack[-1]
        if type(target) is not kind:
            raise ValueError(f"it fills a {type(target).__name__} as if it were a {kind.__name__}")
        return target

    def mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def pop_mark(self, _: Any) -> None:
        self._since_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def get(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def old_text(self, content: str) -> None:
        self._stack.append(content.encode("latin-1").decode("utf-8"))  # a str of Python 2

    def list_of_marked(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(items)

    def tuple_of_marked(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def dict_of_marked(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._fill(items)

    def tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) < count:
            raise IndexError
        self._stack[-count:] = [items]

    def append(self, _: Any) -> None:
        item = self._stack.pop()
        self._target(list).append(item)

    def extend(self, _: Any) -> None:
        items = self._since_mark()
        self._target(list).extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def set_items(self, _: Any) -> None:
        self._fill(self._since_mark())

    def _fill(self, items: list[Any]) -> None:
        target = self._target(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is str:
                target[key] = value

    def name(self, full: str) -> None:
        self._name(*full.split(" ", 1))

    def name_of_stack(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name is not text")
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if len(module) + len(name) > _LONGEST_NAME:
            raise ValueError(f"it names something in {len(module) + len(name):,} letters")
        full = f"{module}.{name}"
        known = Call(self._ordered) if full == "collections.OrderedDict" else self._allowed(full)
        self._stack.append(known)

    def _ordered(self, pairs: Any = ()) -> dict[str, Any]:
        if type(pairs) not in (list, tuple):
            raise ValueError("an OrderedDict is not made of pairs")
        self._spend(len(pairs))
        return {key: value for key, value in pairs if type(key) is str}

    def call(self, _: Any) -> None:
        arguments, called = self._stack.pop(), self._stack.pop()
        if type(called) is not Call or type(arguments) is not tuple:
            raise ValueError("it calls what is not a function")
        self._spend(len(arguments))
        self._stack.append(called.function(*arguments))

    def set_state(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is Instance and target.state is None:
            target.state = state
        elif type(target) is not dict:
            raise ValueError("it sets the state of what has none, or has it already")

    def persist(self, persistent_id: Any) -> None:
        if self._persistent is None:
            raise ValueError("it refers to something outside of it")
        if type(persistent_id) is not tuple:
            raise ValueError("a persistent id is not a tuple")
        self._spend(len(persistent_id))
        self._stack.append(self._persistent(persistent_id))

    def persist_of_stack(self, _: Any) -> None:
        self.persist(self._stack.pop())


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_IGNORED = {"PROTO", "FRAME"}
# Sets are lists: nothing is looked up in them.
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "BINSTRING": _Machine.old_text,
    "SHORT_BINSTRING": _Machine.old_text,
    "LIST": _Machine.list_of_marked,
    "FROZENSET": _Machine.list_of_marked,
    "TUPLE": _Machine.tuple_of_marked,
    "DICT": _Machine.dict_of_marked,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "ADDITEMS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "PERSID": _Machine.persist,
    "BINPERSID": _Machine.persist_of_stack,
}
