"""Where a run continues: the newest checkpoint that is whole."""

from collections.abc import Callable
from typing import TypeVar

from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.kept import DamagedError
from pixelrec_jax.system.errors import UserError

_State = TypeVar("_State")


def restore_newest(
    checkpoints: Checkpoints, restore: Callable[[int], _State]
) -> tuple[int, _State, list[str]]:
    """Returns the newest whole checkpoint, and puts damaged ones that are newer out of the way.

    All processes take the same one, since `Checkpoints.restore` has one outcome in all of them.

    Args:
      checkpoints: at least one.
      restore: returns the state of a step with `Checkpoints.restore`.

    Returns:
      Its step, its state, and a line for each damaged one.

    Raises:
      UserError: none is whole, and nothing was changed; or one cannot be read for another reason.
    """
    reasons: dict[int, str] = {}
    for step in checkpoints.steps:
        try:
            state = restore(step)
        except DamagedError as error:
            reasons[step] = error.reason
            continue
        return (
            step,
            state,
            [
                f"the checkpoint of step {bad} is damaged or incomplete ({reason}); "
                f"{checkpoints.set_aside(bad)}; continuing from step {step}"
                for bad, reason in reasons.items()
            ],
        )
    found = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    raise UserError(
        f"no checkpoint in {checkpoints.directory} is whole ({found}); put back a copy of them, or "
        "train in a new workdir"
    )
