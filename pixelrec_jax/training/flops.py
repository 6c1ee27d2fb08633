"""Floating-point operations of a training step: the work that the model asks for."""

from collections.abc import Callable
from dataclasses import replace

import jax
from jax.extend import core

from pixelrec_jax.data.types import Batch
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.state import state_template


class StepFlops:
    """Counts the floating-point operations of a step on all devices, once for each batch shape.

    The count is that of the step as written, before the compiler changes it: without
    rematerialisation, as one batch, and with attention as plain matrix products. Work that is
    repeated to save memory does not count, so that MFU is comparable between ways to run the same
    model (Chowdhery et al. 2022, appendix B). Items that several microbatches encode do count.
    """

    def __init__(
        self, experiment: Experiment, make_train_step: Callable[[Experiment], jax.stages.Wrapped]
    ):
        """Keeps `make_train_step`, which builds the jitted step; the first batch traces it."""
        self._experiment, self._make_train_step = _as_asked(experiment), make_train_step
        self._step = self._state = None
        self._known: dict[tuple, float] = {}

    def __call__(self, batch: Batch) -> float:
        """Returns the operations of a step on a global batch, given as arrays or as shapes."""
        key = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
        if key not in self._known:
            if self._step is None:
                self._step = self._make_train_step(self._experiment)
                self._state = state_template(self._experiment)
            traced = self._step.trace(self._state, batch, self._experiment.resident)
            once = _operations(traced.lower())
            self._known[key] = once + _further_rounds(traced.jaxpr.jaxpr)
        return self._known[key]


def _as_asked(experiment: Experiment) -> Experiment:
    """Returns the experiment without what only saves memory."""
    config = experiment.config.copy_and_resolve_references().unlock()
    if not config.item.get("remat", False) and config.train.microbatches == 1:
        return experiment
    config.train.microbatches = 1
    if "remat" in config.item:
        config.item.remat = False
    data = experiment.interactions
    model = build_recommender(config, num_items=data.num_items, num_users=data.num_users)
    return replace(experiment, config=config.lock(), model=model)


def _operations(lowered: jax.stages.Lowered) -> float:
    return (lowered.cost_analysis() or {}).get("flops", 0.0)


def _further_rounds(jaxpr: core.Jaxpr) -> float:
    """Returns the operations of all iterations of loops except the first.

    XLA counts one iteration of each loop, as its loops need not have a fixed number of iterations.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.params.get("length") == 0:  # the compiled program leaves such a loop out
            continue
        inner = [x for x in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr) if _is_jaxpr(x)]
        further = sum(_further_rounds(getattr(x, "jaxpr", x)) for x in inner)
        if equation.primitive.name == "scan":
            body, rounds = equation.params["jaxpr"], equation.params["length"]
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in body.in_avals]
            once = _operations(jax.jit(core.jaxpr_as_fun(body)).lower(*shapes))
            further = rounds * (once + further) - once
        total += further
    return total


def _is_jaxpr(x: object) -> bool:
    return isinstance(x, core.Jaxpr | core.ClosedJaxpr)
