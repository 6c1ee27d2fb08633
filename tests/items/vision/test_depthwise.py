"""The two forms of the depthwise convolution against PyTorch, and so against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pixelrec_jax.items.vision import depthwise
from tests.items.vision import parity

FORMS = {
    "shifted": (depthwise.shifted, depthwise.shifted_gradients),
    "grouped": (depthwise.grouped, depthwise.grouped_gradients),
}


@pytest.mark.numerical
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 6), (3, 2, 8), (5, 2, 7)])
@pytest.mark.parametrize("padding", ["torch", "same"])
def test_values_and_gradients_equal_pytorch(form, kernel, stride, size, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, size, size, 4)).astype(np.float32)
    weight = rng.normal(size=(kernel, kernel, 1, 4)).astype(np.float32)
    sides = depthwise.pads((size, size), kernel, stride, padding)
    forward, gradients = (partial(f, stride=stride, sides=sides) for f in FORMS[form])

    image = parity.as_torch(x).requires_grad_()
    their_weight = torch.from_numpy(weight.transpose(3, 2, 0, 1).copy()).requires_grad_()
    (top, bottom), (left, right) = sides
    padded = torch.nn.functional.pad(image, (left, right, top, bottom))
    theirs = torch.nn.functional.conv2d(padded, their_weight, stride=stride, groups=4)
    ours = jax.jit(forward)(x, weight)
    parity.assert_close(ours, theirs.permute(0, 2, 3, 1))

    direction = rng.normal(size=ours.shape).astype(np.float32)
    theirs.backward(parity.as_torch(direction))
    x_gradient, kernel_gradient = jax.jit(gradients)(x, weight, direction)
    parity.assert_close(x_gradient, image.grad.permute(0, 2, 3, 1))
    parity.assert_close(kernel_gradient, their_weight.grad.permute(2, 3, 1, 0))


@pytest.mark.parametrize("size", [7, 8])
def test_padding_is_that_of_pytorch_or_tensorflow(size):
    assert depthwise.pads((size, size), 5, 2, "torch") == ((2, 2), (2, 2))
    # An even side leaves one pixel fewer before the image than after it.
    assert depthwise.pads((size, size), 3, 2, "same") == ((1 - (size == 8), 1),) * 2


def test_this_device_takes_one_of_the_forms_also_in_bfloat16():
    x = jnp.linspace(-1, 1, 2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    kernel = jnp.linspace(-1, 1, 27).reshape(3, 3, 1, 3)
    sides = depthwise.pads((6, 6), 3, 1, "torch")

    def loss(x, kernel):
        return jnp.sum(depthwise.depthwise(x, kernel, 1, sides).astype(jnp.float32) ** 2)

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    exact = jax.grad(lambda *a: jnp.sum(depthwise.grouped(*a, 1, sides) ** 2), (0, 1))(x, kernel)
    for ours, theirs in zip(gradients(x, kernel), exact, strict=True):
        parity.assert_close(ours, theirs)
    halves = gradients(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    for ours, theirs in zip(halves, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        parity.assert_close(ours.astype(jnp.float32), theirs, 0.02)
