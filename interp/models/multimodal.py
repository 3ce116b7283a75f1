"""Text stacks of models that also read images: Gemma 3, Qwen 2.5-VL, Qwen 3-VL, Mistral Small 3.1.

Their blocks are those of the text family, inside ``model.language_model``. At the positions of an image the
stream is written by the image stack instead of the embedding (and in Qwen 3-VL after the first blocks as
well): ``image_writers`` names these modules. No edit reaches them and no prompt with an image is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from interp.models import gemma, llama_like
from interp.models.anatomy import Family, no_factor
from interp.models.gemma import TIED
from interp.models.llama_like import GATED, NORMS, QK_NORM, QKV, SIZES, SQUARE

STACK = "model.language_model"
NO_TOKEN = 300
"""Id of the image token in tiny models: outside their vocabulary."""
PATCHES = {"patch_size": 4, "hidden_size": 16, "intermediate_size": 24}
SIGLIP = PATCHES | {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
QWEN = PATCHES | {"depth": 1, "num_heads": 2, "out_hidden_size": SIZES["hidden_size"]}


def rope(*section: int) -> dict[str, Any]:
    """Rotary settings whose frequencies are dealt to time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}


def with_images(
    text: Family,
    model_type: str,
    text_types: tuple[str, ...],
    image_writers: tuple[str, ...],
    image_stack: tuple[str, ...],
    tiny: Mapping[str, Any],
    readers: tuple[str, ...] | None = None,
    saved: str = STACK,
    saved_unembed: str = "lm_head",
) -> Family:
    """A text family inside a model that reads images.

    text_types: model types of the text stack that ``text`` describes. image_stack: modules whose
    parameters are no part of it. readers: its own, where ``text`` lists more. saved: its name in a
    checkpoint.
    """
    return replace(
        text,
        model_types=(model_type,),
        readers=readers or text.readers,
        tiny={model_type: tiny},
        blocks=f"{STACK}.layers",
        saved_blocks=f"{saved}.layers",
        embeddings=(f"{STACK}.embed_tokens",),
        saved_embeddings=(f"{saved}.embed_tokens",),
        saved_unembed=saved_unembed,
        final_norm=f"{STACK}.norm",
        outside=(f"{STACK}.norm.*", "lm_head.*", *(f"{module}.*" for module in image_stack)),
        logit_cap=no_factor,
        text_types=text_types,
        image_writers=image_writers,
    )


GEMMA = next(f for f in gemma.FAMILIES if "gemma3_text" in f.model_types)
LLAMA = next(f for f in llama_like.FAMILIES if "llama" in f.model_types)
READERS = (*QKV, *GATED, *NORMS)
PROJECTED = ("model.vision_tower", "model.multi_modal_projector")

FAMILIES = (
    with_images(
        GEMMA, "gemma3", ("gemma3_text",), PROJECTED[1:], PROJECTED,
        {
            "text_config": TIED | {"sliding_window": 8, "query_pre_attn_scalar": 12},
            "vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": NO_TOKEN,
            "tie_word_embeddings": True,
        },
        saved="language_model.model", saved_unembed="language_model.lm_head",
    ),
    with_images(
        LLAMA, "mistral3", ("mistral",), PROJECTED[1:], PROJECTED,
        {
            "text_config": SIZES | {"model_type": "mistral"},
            "vision_config": SIGLIP | {"model_type": "pixtral", "head_dim": 8},
            "spatial_merge_size": 2, "image_token_index": NO_TOKEN, "tie_word_embeddings": False,
        },
        readers=READERS, saved="language_model.model", saved_unembed="language_model.lm_head",
    ),
    with_images(
        LLAMA, "qwen2_5_vl", ("qwen2_5_vl_text",), ("model.visual.merger",), ("model.visual",),
        {
            "text_config": SQUARE | {"rope_parameters": rope(1, 1, 2)},
            "vision_config": QWEN | {"fullatt_block_indexes": [0]},
            "image_token_id": NO_TOKEN, "video_token_id": NO_TOKEN, "tie_word_embeddings": False,
        },
        readers=READERS, saved="model",
    ),
    with_images(
        LLAMA, "qwen3_vl", ("qwen3_vl_text",),
        ("model.visual.merger", "model.visual.deepstack_merger_list"), ("model.visual",),
        {
            "text_config": SIZES | {"rope_parameters": rope(2, 2, 2)},
            "vision_config": QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            "image_token_id": NO_TOKEN, "video_token_id": NO_TOKEN, "tie_word_embeddings": False,
        },
        readers=(*READERS, *QK_NORM),
    ),
)  # fmt: skip
