"""What a function of weights says of what it refuses."""

import pytest

from pixelrec_jax.system.errors import UserError


def refusal(function, argument):
    with pytest.raises(UserError) as caught:
        function(argument)
    assert "\n" not in str(caught.value)
    return str(caught.value)
