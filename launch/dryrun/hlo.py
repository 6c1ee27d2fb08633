"""Counts the bytes that a compiled program moves between chips and in HBM, from its HLO text.

The program is that of one chip (SPMD), so that all bytes are per chip. The body of a loop counts as
often as it runs if the compiler or the loop's condition gives the number, and otherwise once.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# By kind of collective: the bytes that a chip sends for each byte of the largest buffer (operand or
# result) in a group of n chips. They are those of ring algorithms; no algorithm sends less.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
# By kind of transfer between s slices: its kind of collective, and the bytes that a chip sends over
# the data center's network for each byte of its buffer.
_BETWEEN_SLICES = {
    "ALL_REDUCE": ("all-reduce", lambda s: 2 * (s - 1) / s),
    "ALL_GATHER": ("all-gather", lambda s: s - 1),
    "REDUCE_SCATTER": ("reduce-scatter", lambda s: (s - 1) / s),
    "ALL_TO_ALL": ("all-to-all", lambda s: (s - 1) / s),
    "ONE_TO_ONE": ("collective-permute", lambda s: 1.0),
}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|\w*computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_MEMORY_SPACE = re.compile(r"S\([1-9]\d*\)")  # in a layout: memory that is not HBM
_CONTROL = ("while", "conditional", "call", "async-start")  # their callees run as instructions
_PARTIAL = ("slice", "dynamic-slice", "gather", "slice-start")  # read as much as they return
# Instructions that move no bytes themselves, and ends of transfers, which count at their start.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|"
    r"partition-id|replica-id|opt-barrier|send|recv|.*-done"
)


class Instruction(NamedTuple):
    """A line of HLO: name, result type, opcode, text in parentheses, and text after them."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.arguments)


class Collective(NamedTuple):
    """A communication between chips.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
      bytes: bytes that each chip sends in one run of the program.
      group: indices of the chips of one group within a slice; None for communication between
        slices, over the data center's network.
    """

    kind: str
    bytes: float
    group: tuple[int, ...] | None


class Program:
    """The optimized HLO of a compiled program."""

    def __init__(self, text: str):
        """Parses the text that `Compiled.as_text()` returns."""
        self.computations: dict[str, list[Instruction]] = {}
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                self.computations[found[1]] = current = []
            elif found := _INSTRUCTION.match(line):
                *head, rest = found.groups()
                end = _closing(rest)
                current.append(Instruction(*head, rest[:end], rest[end:]))
        self._types = {x.name: x.type for lines in self.computations.values() for x in lines}
        self._runs, self._fused = self._count_runs()
        # On TPUs a reduce-scatter is a fusion of an all-reduce and slices of its results.
        self._scattered = {
            x.name
            for name, lines in self.computations.items()
            if name.startswith("all-reduce-scatter")
            for x in lines
        }

    def _count_runs(self) -> tuple[Counter, set[str]]:
        """Returns how often each computation runs, and the ones fused into one instruction."""
        order = list(self.computations)  # callees come before callers, the entry is last
        runs, fused = Counter({order[-1]: 1}), set()
        for caller in reversed(order):
            for x in self.computations[caller]:
                called = {
                    key: re.findall(r"[\w.\-]+", names)
                    for key, names in _CALLED.findall(x.attributes)
                }
                times = self._trips(x, called["condition"][0]) if x.opcode == "while" else 1
                for name in (name for names in called.values() for name in names):
                    runs[name] += times * runs[caller]
                    if caller in fused or x.opcode not in _CONTROL:
                        fused.add(name)
        return runs, fused

    def _trips(self, loop: Instruction, condition: str) -> int:
        if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        # JAX counts from 0 up to a constant.
        lines = self.computations[condition]
        limits = [x for x in lines if x.opcode == "constant" and x.type.startswith("s32[]")]
        return int(limits[0].arguments) if len(limits) == 1 else 1

    def collectives(self, *, chips: int, slices: int = 1) -> list[Collective]:
        """Returns the collectives of the program; `chips` is the number in a slice.

        An asynchronous collective is spread over several fusions, which share one channel.
        """
        found: dict[tuple[str, str], Collective] = {}
        for x, times in self._instructions():
            kind = x.opcode.removesuffix("-start")
            channel = re.search(r"channel_id=(\d+)", x.attributes)
            if kind == "all-reduce" and x.name in self._scattered:
                kind, channel = "reduce-scatter", None  # several may share a channel
            key = (kind, channel[1] if channel else x.name)
            if kind in _SENT:
                group = _group(x.attributes, chips)
                sent = times * self._largest(x) * _SENT[kind](len(group))
                if key not in found or sent > found[key].bytes:
                    found[key] = Collective(kind, sent, group)
            elif kind == "send" and (
                way := re.search(r'megascale_transfer_type="(\w+)', x.attributes)
            ):
                kind, factor = _BETWEEN_SLICES[way[1]]
                sent = times * _size(self._types[x.operands[0]]) * factor(slices)
                found[key] = Collective(kind, sent, None)
        return list(found.values())

    def _largest(self, x: Instruction) -> int:
        """Returns the bytes of all operands or of all results, whichever are more."""
        operands = sum(_size(self._types[name]) for name in x.operands)
        results = _size(x.type) - (operands if x.opcode.endswith("-start") else 0)
        return max(operands, results)

    def hbm_bytes(self) -> int:
        """Returns the bytes of HBM that instructions read and write.

        A buffer counts as a whole even if a fusion reads only a slice of it or updates it in place.
        """
        return sum(
            times * self._traffic(x)
            for x, times in self._instructions(fused=False)
            if not _FREE.fullmatch(x.opcode)
        )

    def _traffic(self, x: Instruction) -> int:
        types = [self._types[name] for name in x.operands]
        if x.opcode == "dynamic-update-slice":
            return 2 * _size(types[1], hbm=True)
        read, written = sum(_size(t, hbm=True) for t in types), _size(x.type, hbm=True)
        result = _size(x.type)
        if x.opcode.endswith("-start"):  # its type also lists the operands
            written, result = max(written - read, 0), result - sum(map(_size, types))
        return written + (min(read, result) if x.opcode in _PARTIAL else read)

    def _instructions(self, *, fused: bool = True) -> Iterator[tuple[Instruction, int]]:
        """Yields instructions and how often they run; without `fused` a fusion is only one."""
        for name, lines in self.computations.items():
            if self._runs[name] and (fused or name not in self._fused):
                for x in lines:
                    yield x, self._runs[name]


def _closing(text: str) -> int:
    """Returns the index of the parenthesis that closes one opened before the text."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)


def _size(type_: str, *, hbm: bool = False) -> int:
    """Returns the bytes of a type or tuple of types; with `hbm` only of buffers in HBM."""
    total = 0
    for dtype, shape, layout in _SHAPE.findall(type_):
        elsewhere = hbm and _MEMORY_SPACE.search(layout)
        if (bits := _bits(dtype)) and not elsewhere:
            total += -(-bits * math.prod(int(n) for n in shape.split(",") if n) // 8)
    return total


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    found = re.search(r"\d+", dtype)  # 8 of f8e4m3fn; none in token and opaque
    return int(found[0]) if found else 0


def _group(attributes: str, chips: int) -> tuple[int, ...]:
    """Returns one of the groups of chips that communicate; HLO writes them in four ways."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return int(pairs[1]), int(pairs[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return tuple(int(n) for n in listed[1].split(","))
    if iota := re.search(r"replica_groups=(\[[\d,]+\]<=\S+?\]\S*?),? ", attributes + " "):
        shape, _, order = iota[1].partition("<=")
        return tuple(_iota(order, chips).reshape(_numbers(shape))[0].tolist())
    if mesh := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}", attributes
    ):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        grid = _iota(mesh[2] or f"[{chips}]", chips).reshape([int(n) for n in axes.values()])
        names, used = list(axes), re.findall(r"'(\w+)'", mesh[3])
        index = tuple(slice(None) if name in used else 0 for name in names)
        return tuple(grid[index].reshape(-1).tolist())
    return tuple(range(chips))


def _iota(order: str, chips: int) -> np.ndarray:
    """Returns the chips in an order such as "[16]" or "[4,4]T(1,0)"."""
    shape, _, permutation = order.partition("T")
    grid = np.arange(chips).reshape(_numbers(shape))
    return grid.transpose(_numbers(permutation)).reshape(-1) if permutation else grid.reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
