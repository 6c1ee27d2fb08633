"""A backbone is read from a whole checkpoint, with a text tower, decoder or classifier."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import open_clip
import pytest
import torch
from transformers import (
    BeitForImageClassification,
    CLIPConfig,
    CLIPModel,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from pixelrec_jax.items.vision import clip_vit
from pixelrec_jax.items.vision.pretrained import merge_collections
from pixelrec_jax.weights.files import write_tensors
from pixelrec_jax.weights.mapping import read_weights, write_weights
from tests.items.vision import parity
from tests.items.vision.cases import (
    CASES,
    OPENAI,
    SIZES,
    SWIN_SIZES,
    beit_config,
    loaded,
    resnet_config,
)

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 8,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_intermediate_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}


class Whole(NamedTuple):
    """A model around a backbone.

    Attributes:
      make: makes the model.
      unused: a tensor of its checkpoint that is not the backbone's.
      prefix: of the names of the backbone's.
      others: what other files hold as well: buffers of older versions, numbers.
    """

    make: Callable[[], torch.nn.Module]
    unused: str
    prefix: str
    others: dict[str, np.ndarray] = {}  # noqa: RUF012


def _clip() -> CLIPModel:
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=8))


def _clip_resnet() -> open_clip.CLIP:
    return open_clip.CLIP(
        embed_dim=12,
        # The attention has width * 32 / 64 heads.
        vision_cfg={"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
        text_cfg={"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
    )


_BEIT = "beit.encoder.layer.0.attention.attention.relative_position_bias"
_SWIN = "swin.encoder.layers.0.blocks.1"
WHOLE = {
    "clip": Whole(_clip, "text_model.final_layer_norm.weight", "vision_model."),
    "vit": Whole(
        lambda: ViTForImageClassification(ViTConfig(**SIZES)), "classifier.weight", "vit."
    ),
    "mae": Whole(
        lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER)), "decoder.mask_token", "vit."
    ),
    "beit": Whole(
        lambda: BeitForImageClassification(beit_config()),
        "classifier.weight",
        "beit.",
        {f"{_BEIT}.relative_position_index": np.zeros((17, 17), np.int64)},
    ),
    "swin": Whole(
        lambda: SwinForImageClassification(SwinConfig(**SWIN_SIZES)),
        "classifier.weight",
        "swin.",
        {
            f"{_SWIN}.attention.self.relative_position_index": np.zeros((16, 16), np.int64),
            f"{_SWIN}.attn_mask": np.zeros((4, 16, 16), np.float32),
        },
    ),
    **{
        f"resnet_{kind}": Whole(
            lambda kind=kind: ResNetForImageClassification(resnet_config(kind)),
            "classifier.1.weight",
            "resnet.",
        )
        for kind in ("basic", "bottleneck")
    },
    "clip_resnet": Whole(
        _clip_resnet,
        "transformer.resblocks.0.ln_1.weight",
        "visual.",
        # OpenAI's files hold these numbers as tensors.
        {
            name: np.asarray(number)
            for name, number in (("input_resolution", 64), ("context_length", 4), ("vocab_size", 9))
        },
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_checkpoint_is_read(name):
    whole, case = WHOLE[name], CASES[name]
    tensors = {**parity.checkpoint(parity.randomise(whole.make())), **whole.others}
    assert whole.unused in tensors
    backbone = parity.read(case.backbone, (case.mapping,), tensors, size=case.size)
    written = write_weights(merge_collections(backbone.variables), case.mapping)
    ours = {whole.prefix + key.removeprefix(whole.prefix): x for key, x in written.items()}
    # All tensors with the backbone's prefix, apart from those that the mapping ignores.
    theirs = {
        key
        for key in tensors
        if key.startswith(whole.prefix)
        and not case.mapping.ignores(key)
        and not case.mapping.ignores(key.removeprefix(whole.prefix))
    }
    assert ours.keys() == theirs
    for key, tensor in ours.items():
        np.testing.assert_array_equal(tensor, tensors[key])


def test_written_names_of_clip_fit_the_models_that_have_both_towers(tmp_path):
    """As the files of the hub and of OpenAI do."""
    params = loaded("clip").backbone.variables["params"]
    _clip().config.save_pretrained(tmp_path)
    write_tensors(tmp_path / "model.safetensors", write_weights(params, clip_vit.HUGGINGFACE))
    _, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    missing = {name for name in report["missing_keys"] if name.startswith("vision_model.")}
    assert not report["unexpected_keys"]
    assert missing == {f"vision_model.post_layernorm.{x}" for x in ("weight", "bias")}
    tensors = {n: torch.from_numpy(x) for n, x in write_weights(params, clip_vit.OPENAI).items()}
    report = OPENAI().load_state_dict(tensors, strict=False)
    missing = {name for name in report.missing_keys if name.startswith("visual.")}
    assert not report.unexpected_keys
    assert missing == {"visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"}


@pytest.mark.parametrize("name", ["clip", "openai"])
def test_the_mapping_of_a_clip_checkpoint_is_found(name):
    """Whichever of the two origins a file has."""
    this = loaded(name)
    expected = this.backbone.variables["params"]
    tree = read_weights(
        this.tensors, clip_vit.SPECS["clip_vit_b32"].mappings, expected, origin="file"
    )
    jax.tree.map(np.testing.assert_array_equal, tree, expected)
