"""Vision transformers of CLIP (Radford et al. 2021).

Published weights add CLIP's norm and projection after the tokens, which are left out.
"""

from functools import partial

from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.items.vision.vit import BASE, LARGE, TOKENS, VisionTransformer
from pixelrec_jax.system.options import OneOf, Option
from pixelrec_jax.weights.mapping import Rule, WeightMapping, linear, norm
from pixelrec_jax.weights.transforms import LINEAR, PATCHES, POSITION

_ACTIVATION = Option(
    "activation of the blocks, as the weights need it", OneOf("quick_gelu", "gelu")
)


class ClipTransformer(VisionTransformer, kw_only=True):
    """The vision tower of CLIP; attributes are those of `VisionTransformer`.

    OpenAI's weights need quick GELU, most others, such as LAION's, plain GELU.
    """

    clip: bool = True
    epsilon: float = 1e-5
    activation: str = _ACTIVATION.field("quick_gelu")


_LAYER = "encoder.layers.{n}"
HUGGINGFACE = WeightMapping(
    "huggingface",
    rules=(
        Rule("embeddings.class_embedding", "stem/class_token"),
        Rule("embeddings.patch_embedding.weight", "stem/embed/patch/kernel", PATCHES),
        Rule("embeddings.position_embedding.weight", "stem/position", POSITION),
        *norm("pre_layrnorm", "stem/norm"),  # the misspelling is CLIP's
        *linear(f"{_LAYER}.self_attn.q_proj", "block_{n}/query"),
        *linear(f"{_LAYER}.self_attn.k_proj", "block_{n}/key"),
        *linear(f"{_LAYER}.self_attn.v_proj", "block_{n}/value"),
        *linear(f"{_LAYER}.self_attn.out_proj", "block_{n}/out"),
        *linear(f"{_LAYER}.mlp.fc1", "block_{n}/mlp_in"),
        *linear(f"{_LAYER}.mlp.fc2", "block_{n}/mlp_out"),
        *norm(f"{_LAYER}.layer_norm1", "block_{n}/norm_1"),
        *norm(f"{_LAYER}.layer_norm2", "block_{n}/norm_2"),
    ),
    # Files of the hub and of whole CLIP models have the prefix. Transformers 5 saves a vision model
    # without it and loads both forms.
    prefixes=("vision_model.",),
    written_prefix="vision_model.",
    # The text tower, the projections and the final norm come after the tokens.
    ignored=(
        r"(vision_model\.)?post_layernorm\..*",
        r"text_model\..*|(visual|text)_projection\..*|logit_scale|.*\.position_ids",
    ),
)

_BLOCK = "visual.transformer.resblocks.{n}"
_PARTS = ("query", "key", "value")
# The prefix is part of the names: without it they are the text tower's.
OPENAI = WeightMapping(
    "openai",
    rules=(
        Rule("visual.class_embedding", "stem/class_token"),
        Rule("visual.conv1.weight", "stem/embed/patch/kernel", PATCHES),
        Rule("visual.positional_embedding", "stem/position", POSITION),
        *norm("visual.ln_pre", "stem/norm"),
        Rule(
            f"{_BLOCK}.attn.in_proj_weight",
            tuple(f"block_{{n}}/{part}/kernel" for part in _PARTS),
            LINEAR,
        ),
        Rule(f"{_BLOCK}.attn.in_proj_bias", tuple(f"block_{{n}}/{part}/bias" for part in _PARTS)),
        *linear(f"{_BLOCK}.attn.out_proj", "block_{n}/out"),
        *linear(f"{_BLOCK}.mlp.c_fc", "block_{n}/mlp_in"),
        *linear(f"{_BLOCK}.mlp.c_proj", "block_{n}/mlp_out"),
        *norm(f"{_BLOCK}.ln_1", "block_{n}/norm_1"),
        *norm(f"{_BLOCK}.ln_2", "block_{n}/norm_2"),
    ),
    ignored=(
        r"visual\.(ln_post\..*|proj)",
        r"transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*",
        r"text_projection|logit_scale|input_resolution|context_length|vocab_size",
    ),
)

_of = partial(EncoderSpec, pools=TOKENS, normalisation="clip", mappings=(HUGGINGFACE, OPENAI))
SPECS = {
    "clip_vit_b32": _of(partial(ClipTransformer, **BASE, patch=32), multiple=32),
    "clip_vit_b16": _of(partial(ClipTransformer, **BASE, patch=16), multiple=16),
    "clip_vit_l14": _of(partial(ClipTransformer, **LARGE, patch=14), multiple=14),
}
