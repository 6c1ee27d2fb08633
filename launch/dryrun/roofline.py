"""A lower bound of the time that a compiled program takes on a chip.

A chip cannot compute, read memory or communicate faster than its peaks. So a program takes at least
the longest of four times, as if all four overlapped perfectly:

* compute: counted floating-point operations divided by the bfloat16 peak;
* HBM: bytes read and written divided by the bandwidth. The lower of two counts is taken, which are
  both too high: the compiler's count includes on-chip memory, and the count of buffers in HBM takes
  a buffer as a whole even if only a slice is read;
* ICI: bytes sent to chips of the same slice. A group of chips uses only the links along the torus
  axes that it spans, but all of these all the time;
* DCN: bytes sent to other slices over the data center's network.

A real run is slower. The bound leaves out latency, waiting for the input pipeline, matrices that do
not fill the matrix units, and operations of the vector unit, which has no published peak.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.stages import Compiled, Lowered

from pixelrec_jax.launch.dryrun.hlo import Collective, Program
from pixelrec_jax.system.chips import Chip, spanned_axes
from pixelrec_jax.system.errors import UserError, reason

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a program on each chip.

    Attributes:
      arguments: bytes of HBM for arguments.
      temporary: bytes of HBM for temporary buffers, such as activations.
      peak: bytes of HBM in use at the peak.
      flops, hbm_bytes: counted as described above.
      sent: bytes sent to other chips of the slice, by kind of collective.
      sent_between_slices: bytes sent over the data center's network, by kind of collective.
      times: seconds by "compute", "HBM", "ICI" and "DCN", as described above.
    """

    arguments: int
    temporary: int
    peak: int
    flops: float
    hbm_bytes: float
    sent: dict[str, float]
    sent_between_slices: dict[str, float]
    times: dict[str, float]

    @property
    def seconds(self) -> float:
        """The bound: the longest of the times."""
        return max(self.times.values())

    @property
    def bound_by(self) -> str:
        """The name of the longest time."""
        return max(self.times, key=self.times.__getitem__)

    @property
    def mfu(self) -> float:
        """The largest MFU that is possible: the time of compute divided by the bound."""
        return self.times["compute"] / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Returns all values in JSON types."""
        derived = {"seconds": self.seconds, "bound_by": self.bound_by, "mfu": self.mfu}
        return {**asdict(self), **derived}


class DoesNotFitError(Exception):
    """The compiler refuses a program that needs more HBM than it may use.

    Attributes:
      needed, available: bytes on each chip.
    """

    def __init__(self, needed: float, available: float):
        """Makes the error, with its message."""
        super().__init__(f"needs {needed / 2**30:.1f} of {available / 2**30:.2f} GiB of HBM")
        self.needed, self.available = needed, available


class CompilerError(UserError):
    """The compiler itself failed on a program."""


def compile_and_count(
    lowered: Lowered, chip: Chip, *, coordinates: Sequence[Sequence[int]], slices: int = 1
) -> Cost:
    """Compiles a program and returns its cost.

    Args:
      lowered: the program, lowered for the devices of a topology.
      chip: the peaks of a device.
      coordinates: the coordinates of a slice's chips in the torus, in the order of the mesh.
      slices: number of slices.

    Raises:
      DoesNotFitError: the program needs more HBM than a chip has.
      CompilerError: the compiler failed.
    """
    compiled = _compile(lowered)
    text, analysis = compiled.as_text(), compiled.cost_analysis()
    memory = compiled.memory_analysis()
    assert text is not None, "the compiler of TPUs tells it"
    assert analysis is not None, "the compiler of TPUs tells it"
    assert memory is not None, "the compiler of TPUs tells it"
    program = Program(text)
    collectives = program.collectives(chips=len(coordinates), slices=slices)
    inside = [x for x in collectives if x.group is not None]
    across = [x for x in collectives if x.group is None]
    hbm_bytes = min(program.hbm_bytes(), analysis.get("bytes accessed", 0.0))
    flops = analysis.get("flops", 0.0)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        flops=flops,
        hbm_bytes=hbm_bytes,
        sent=_by_kind(inside),
        sent_between_slices=_by_kind(across),
        times={
            "compute": flops / chip.flops,
            "HBM": hbm_bytes / chip.hbm_bandwidth,
            "ICI": sum(_ici_seconds(x, chip, coordinates) for x in inside),
            "DCN": sum(x.bytes for x in across) / chip.dcn,
        },
    )


def _compile(lowered: Lowered) -> Compiled:
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        # "... required for HLO temporaries (50.47G) exceeds available HBM (15.75G)", or
        # "... in memory space hbm. Used 20.10G of 15.75G hbm."
        for pattern in (r"\(SIZE\) exceeds available HBM \(SIZE\)", r"Used SIZE of SIZE hbm"):
            if found := re.search(pattern.replace("SIZE", r"([\d.]+)([KMGT])"), str(error)):
                needed, unit, available, of = found.groups()
                raise DoesNotFitError(
                    float(needed) * _UNITS[unit], float(available) * _UNITS[of]
                ) from None
        raise CompilerError(
            f"the TPU compiler failed with an error of its own ({reason(error)}); try another "
            "--examples_per_chip or another version of libtpu"
        ) from None


def _ici_seconds(collective: Collective, chip: Chip, coordinates: Sequence[Sequence[int]]) -> float:
    assert collective.group is not None, "a collective inside a slice has its places"
    axes = spanned_axes([coordinates[index] for index in collective.group])
    # Two devices of one chip span no axis; their connection is faster than that of neighbours.
    return collective.bytes / (chip.ici * max(axes, 1) / chip.axes)


def _by_kind(collectives: Sequence[Collective]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for collective in collectives:
        total[collective.kind] += collective.bytes
    return dict(total)
