"""Samba (Ren et al. 2024, arXiv 2406.07522): Mamba, MLP, sliding-window attention, MLP, and so on.

A block is a mixer and a SwiGLU MLP, each behind an RMSNorm and added to the stream; mixers are Mamba-1 and
sliding-window attention in turn, or as ``layer_types`` says. The parts are transformers' own. A query sees
itself and the ``sliding_window − 1`` keys before it.
"""

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import GenerationConfig, MambaConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import (
    create_causal_mask,
    create_recurrent_attention_mask,
    create_sliding_window_causal_mask,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import RopeParameters
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mistral.modeling_mistral import (
    MistralAttention,
    MistralMLP,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

MAMBA, SLIDING, FULL = "linear_attention", "sliding_attention", "full_attention"
MASKS = {
    MAMBA: create_recurrent_attention_mask,
    SLIDING: create_sliding_window_causal_mask,
    FULL: create_causal_mask,
}


@strict
class SambaConfig(PreTrainedConfig):
    """Sizes of a Samba; the defaults are those of the 421M model.

    layer_types: the mixer of every block, ``linear_attention`` (Mamba), ``sliding_attention`` or
    ``full_attention``; None for Mamba and sliding windows in turn (``generate`` runs without a cache where no
    layer attends: transformers' cache counts positions in attention layers alone). use_rope: False for no
    positions (NoPE). mamba_dt_rank: ``"auto"`` for ⌈hidden_size / 16⌉.
    """

    model_type = "samba"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 32000
    hidden_size: int = 1536
    intermediate_size: int = 4096
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 4096
    sliding_window: int = 2048
    layer_types: list[str] | None = None
    use_rope: bool = True
    rope_parameters: RopeParameters | dict[str, Any] | None = None
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_dt_rank: int | str = "auto"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    use_cache: bool = True
    use_mambapy: bool = False
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.mamba_dt_rank == "auto":
            self.mamba_dt_rank = math.ceil(self.hidden_size / 16)
        if self.layer_types is None:
            turns = (MAMBA, SLIDING)
            self.layer_types = [turns[i % 2] for i in range(self.num_hidden_layers)]
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Called by transformers when a config is made. Raises ValueError for mixers that do not exist."""
        types = self.layer_types or []
        if len(types) != self.num_hidden_layers or not set(types) <= MASKS.keys():
            raise ValueError(
                f"layer_types needs one of {', '.join(MASKS)} for each of {self.num_hidden_layers} layers, "
                f"got {types}"
            )

    def of_mamba(self) -> MambaConfig:
        """The config of the Mamba mixers."""
        return MambaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            state_size=self.mamba_d_state,
            conv_kernel=self.mamba_d_conv,
            expand=self.mamba_expand,
            time_step_rank=self.mamba_dt_rank,
            hidden_act=self.hidden_act,
            use_mambapy=self.use_mambapy,
        )


class SambaBlock(GradientCheckpointingLayer):
    """A mixer and an MLP, each behind a norm and added to the stream."""

    def __init__(self, config: SambaConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.layer_types is not None
        self.layer_type = config.layer_types[layer_idx]
        if self.layer_type == MAMBA:
            self.mamba = MambaMixer(config.of_mamba(), layer_idx)
        else:
            self.self_attn = MistralAttention(config, layer_idx)  # type: ignore[arg-type] (reads the same names)
        self.mlp = MistralMLP(config)
        mixer = self.mamba.out_proj if self.layer_type == MAMBA else self.self_attn.o_proj
        for writer in (mixer, self.mlp.down_proj):
            writer.writes_stream = True  # transformers initialises leaves, without their names
        self.input_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        read = self.input_layernorm(hidden_states)
        if self.layer_type == MAMBA:
            mixed = self.mamba(read, cache_params=past_key_values, attention_mask=attention_mask)
        else:
            mixed, _ = self.self_attn(
                read, position_embeddings, attention_mask, past_key_values, **kwargs
            )
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class SambaPreTrainedModel(PreTrainedModel):
    config: SambaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("SambaBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _supports_sdpa = True
    _is_stateful = True
    _can_record_outputs = {"hidden_states": SambaBlock, "attentions": MistralAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; what writes the stream is smaller by the square root of the number of sublayers."""
        super()._init_weights(module)
        if isinstance(module, MambaMixer):
            module.init_mamba_weights()
            init.kaiming_uniform_(module.conv1d.weight, a=math.sqrt(5))
        if getattr(module, "writes_stream", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, std=std)


class SambaModel(SambaPreTrainedModel):
    """The embedding, the blocks and the final norm."""

    def __init__(self, config: SambaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        blocks = (SambaBlock(config, i) for i in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(blocks)
        self.norm = MistralRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MistralRotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The normed stream ``[batch, seq, d_model]``."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._positions(hidden_states, past_key_values)
        masks = self._masks(hidden_states, attention_mask, past_key_values, position_ids)
        rotation = self._rotation(hidden_states, position_ids)
        for block in self.layers:
            hidden_states = block(
                hidden_states,
                attention_mask=masks[block.layer_type],
                past_key_values=past_key_values,
                position_embeddings=rotation,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(self.norm(hidden_states), past_key_values)

    def _positions(self, stream: Tensor, cache: Cache | None) -> Tensor:
        """Positions after those in the cache, ``[1, seq]``; without attention nothing reads them."""
        types = self.config.layer_types or []
        seen = 0 if cache is None or set(types) == {MAMBA} else cache.get_seq_length()
        return (torch.arange(stream.shape[1], device=stream.device) + seen).unsqueeze(0)

    def _masks(
        self, stream: Tensor, mask: Any, cache: Cache | None, positions: Tensor
    ) -> dict[str, Tensor | None]:
        """The mask of each kind of mixer; ``generate`` may give them ready made."""
        if isinstance(mask, dict):
            return mask
        return {
            kind: MASKS[kind](
                config=self.config,
                inputs_embeds=stream,
                attention_mask=mask,
                past_key_values=cache,
                position_ids=positions,
            )
            for kind in dict.fromkeys(self.config.layer_types or ())
        }

    def _rotation(self, stream: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[batch, seq, d_head]``; of angle 0 without RoPE."""
        cos, sin = self.rotary_emb(stream, position_ids=positions)
        return (cos, sin) if self.config.use_rope else (torch.ones_like(cos), torch.zeros_like(sin))


class SambaForCausalLM(SambaPreTrainedModel, GenerationMixin):
    """A Samba with its unembedding."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: SambaConfig) -> None:
        super().__init__(config)
        self.model = SambaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[batch, seq, vocab]``, and the loss of ``labels``, which are shifted here."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(found.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
            attentions=found.attentions,
        )

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *given: Any
    ) -> None:
        if set(self.config.layer_types or ()) == {MAMBA}:
            generation_config.use_cache = model_kwargs["use_cache"] = False
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *given)


CONFIG = SambaConfig
MODEL = SambaForCausalLM
