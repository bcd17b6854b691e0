"""Tiny random models of Transformers' families, for the tokenizer of the bundled example.

`build(name)` gives a model of hidden size 32 and two to six layers in eval mode; `FAMILIES` lists the names. Families are
told by their class and the settings in which they differ from `COMMON`; a setting of `COMMON` that a family's configuration
does not know is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

from wagle_trainer.data import fictional_tokenizer

TOKENIZER = fictional_tokenizer(people=10)
VOCABULARY = len(TOKENIZER)
SPECIAL = {
    "pad_token_id": TOKENIZER.pad_token_id,
    "bos_token_id": TOKENIZER.eos_token_id,
    "eos_token_id": TOKENIZER.eos_token_id,
}
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WITHOUT_DROPOUT = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout",
    "embedding_dropout",
    "residual_dropout",
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout_rate",
)

HEAD = {"head_dim": 8}
SLIDING = {"sliding_window": 8}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
GEMMA = HEAD | SLIDING | {"query_pre_attn_scalar": 8}
MAMBA = {"state_size": 8, "time_step_rank": 4}
MAMBA_HEADS = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}

# Name -> class, settings of its own.
CAUSAL: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("ApertusForCausalLM", {}),
    "arcee": ("ArceeForCausalLM", {}),
    "bamba": ("BambaForCausalLM", MAMBA_HEADS | {"mamba_n_groups": 1, "attn_layer_indices": [1]}),
    "biogpt": ("BioGptForCausalLM", {}),
    "bitnet": ("BitNetForCausalLM", {}),
    "bloom": ("BloomForCausalLM", {}),
    "codegen": ("CodeGenForCausalLM", {"rotary_dim": 4}),
    "cohere": ("CohereForCausalLM", {}),
    "cohere2": ("Cohere2ForCausalLM", HEAD | SLIDING | {"num_hidden_layers": 4}),
    "ctrl": ("CTRLLMHeadModel", {"dff": 48}),
    "cwm": ("CwmForCausalLM", HEAD | SLIDING),
    "dbrx": (
        "DbrxForCausalLM",
        {
            "d_model": 32,  # its experts take their width from this setting alone
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "deepseek_v2": ("DeepseekV2ForCausalLM", DEEPSEEK | LATENT | HEAD | {"topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", DEEPSEEK | LATENT | HEAD | {"n_group": 2}),
    "diffllama": ("DiffLlamaForCausalLM", {}),
    "dots1": ("Dots1ForCausalLM", DEEPSEEK | HEAD),
    "ernie4_5": ("Ernie4_5ForCausalLM", HEAD),
    "exaone4": ("Exaone4ForCausalLM", SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}),
    "falcon_alibi": ("FalconForCausalLM", {"alibi": True}),
    "falcon_h1": ("FalconH1ForCausalLM", MAMBA_HEADS | HEAD | {"mamba_d_ssm": 64, "mamba_n_groups": 1}),
    "falcon_mamba": ("FalconMambaForCausalLM", MAMBA),
    "falcon_new": ("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_rotary": ("FalconForCausalLM", {}),
    "flex_olmo": ("FlexOlmoForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gemma": ("GemmaForCausalLM", HEAD),
    "gemma2": ("Gemma2ForCausalLM", GEMMA),
    "gemma3_text": ("Gemma3ForCausalLM", GEMMA),
    "gemma4_text": (
        "Gemma4ForCausalLM",
        HEAD
        | SLIDING
        | {
            "global_head_dim": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "glm": ("GlmForCausalLM", HEAD),
    "glm4": ("Glm4ForCausalLM", HEAD),
    "glm4_moe": ("Glm4MoeForCausalLM", DEEPSEEK | HEAD),
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", {}),
    "gpt_neo": ("GPTNeoForCausalLM", {"attention_types": [[["global", "local"], 1]], "window_size": 8}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "gpt_neox_japanese": ("GPTNeoXJapaneseForCausalLM", {"intermediate_multiple_size": 2}),
    "gpt_oss": ("GptOssForCausalLM", LOCAL_EXPERTS | HEAD | SLIDING),
    "gptj": ("GPTJForCausalLM", {"rotary_dim": 4}),
    "granite": (
        "GraniteForCausalLM",
        {"logits_scaling": 8.0, "embedding_multiplier": 4.0, "residual_multiplier": 0.5},
    ),
    "granitemoe": ("GraniteMoeForCausalLM", LOCAL_EXPERTS | {"logits_scaling": 8.0}),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        LOCAL_EXPERTS | MAMBA_HEADS | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
    ),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", LOCAL_EXPERTS | {"shared_intermediate_size": 32}),
    "helium": ("HeliumForCausalLM", HEAD),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", HEAD),
    "jetmoe": ("JetMoeForCausalLM", LOCAL_EXPERTS | {"kv_channels": 8}),
    "lfm2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "llama": ("LlamaForCausalLM", {}),
    "llama4_text": (
        "Llama4ForCausalLM",
        LOCAL_EXPERTS
        | HEAD
        | {
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
    ),
    "llama_tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mamba": ("MambaForCausalLM", MAMBA),
    "mamba2": (
        "Mamba2ForCausalLM",
        {"state_size": 8, "head_dim": 16, "num_heads": 4, "expand": 2, "n_groups": 2, "chunk_size": 16},
    ),
    "minimax_m2": ("MiniMaxM2ForCausalLM", LOCAL_EXPERTS | HEAD | {"rotary_dim": 4}),
    "ministral": ("MinistralForCausalLM", HEAD | SLIDING),
    "mistral": ("MistralForCausalLM", HEAD | SLIDING),
    "mixtral": ("MixtralForCausalLM", LOCAL_EXPERTS),
    "mpt": ("MptForCausalLM", {"max_seq_len": 256, "expansion_ratio": 2}),
    "nanochat": ("NanoChatForCausalLM", HEAD),
    "nemotron": ("NemotronForCausalLM", {}),
    "nemotron_h": (
        "NemotronHForCausalLM",
        HEAD
        | {
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "layers_block_type": ["mamba", "attention"],
        },
    ),
    "olmo": ("OlmoForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", SLIDING),
    "olmo_hybrid": ("OlmoHybridForCausalLM", LINEAR_ATTENTION | {"linear_num_key_heads": 4}),
    "olmoe": ("OlmoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}),
    "opt": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt_350m": ("OPTForCausalLM", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "persimmon": ("PersimmonForCausalLM", {}),
    "phi": ("PhiForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {}),
    "phimoe": ("PhimoeForCausalLM", LOCAL_EXPERTS),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3ForCausalLM", HEAD),
    "qwen3_5_text": ("Qwen3_5ForCausalLM", LINEAR_ATTENTION | HEAD),
    "qwen3_moe": ("Qwen3MoeForCausalLM", EXPERTS | HEAD),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        EXPERTS | LINEAR_ATTENTION | HEAD | {"shared_expert_intermediate_size": 24},
    ),
    "recurrent_gemma": (
        "RecurrentGemmaForCausalLM",
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 8,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "rwkv": ("RwkvForCausalLM", {"context_length": 256, "attention_hidden_size": 32}),
    "seed_oss": ("SeedOssForCausalLM", HEAD),
    "smollm3": ("SmolLM3ForCausalLM", {"num_hidden_layers": 4}),
    "stablelm": ("StableLmForCausalLM", {}),
    "starcoder2": ("Starcoder2ForCausalLM", {}),
    "vaultgemma": ("VaultGemmaForCausalLM", GEMMA),
    "xglm": ("XGLMForCausalLM", {"ffn_dim": 48}),
    "youtu": ("YoutuForCausalLM", LATENT),
    "zamba": (
        "ZambaForCausalLM",
        {
            "num_hidden_layers": 6,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "n_mamba_heads": 2,
            "use_mamba_kernels": False,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
        },
    ),
    "zamba2": (
        "Zamba2ForCausalLM",
        {
            "num_hidden_layers": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "mamba_headdim": 16,
            "n_mamba_heads": 4,
            "chunk_size": 16,
            "num_mem_blocks": 1,
            "use_mem_rope": True,
            "use_mamba_kernels": False,
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
            "adapter_rank": 4,
            "hybrid_layer_ids": [1, 3],
        },
    ),
    # Decoders of families that mostly have an encoder, too.
    "bart_decoder": (
        "BartForCausalLM",
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
        | {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
        | {"is_decoder": True, "is_encoder_decoder": False},
    ),
    "bert_decoder": ("BertLMHeadModel", {"is_decoder": True}),
}


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = VISION | {"image_size": 28, "patch_size": 14}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
LAST = VOCABULARY - 1  # stands for images, which no text here has


def _gemma3() -> nn.Module:
    text = COMMON | SPECIAL | GEMMA | {"model_type": "gemma3_text"}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=IMAGE | {"model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=LAST,
        boi_token_index=LAST - 1,
        eoi_token_index=LAST - 2,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _qwen2_vl() -> nn.Module:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    tokens = {"image_token_id": LAST, "video_token_id": LAST - 1, "vision_start_token_id": LAST - 2}
    config = transformers.Qwen2VLConfig(
        text_config=COMMON | SPECIAL | MROPE,
        vision_config=vision | {"in_channels": 3},
        vision_end_token_id=LAST - 3,
        **tokens,
        **SPECIAL,
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen3_vl() -> nn.Module:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 14}
    more = {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    tokens = {"image_token_id": LAST, "video_token_id": LAST - 1, "vision_start_token_id": LAST - 2}
    config = transformers.Qwen3VLConfig(
        text_config=COMMON | SPECIAL | HEAD | MROPE,
        vision_config=vision | more,
        vision_end_token_id=LAST - 3,
        **tokens,
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


def _llava() -> nn.Module:
    config = transformers.LlavaConfig(
        text_config=COMMON | SPECIAL | {"model_type": "llama"},
        vision_config=IMAGE | {"projection_dim": 32, "model_type": "clip_vision_model"},
        image_token_index=LAST,
    )
    return transformers.LlavaForConditionalGeneration(config)


def _smolvlm() -> nn.Module:
    config = transformers.SmolVLMConfig(
        text_config=COMMON | SPECIAL | {"model_type": "llama"},
        vision_config=IMAGE,
        image_token_id=LAST,
        pad_token_id=TOKENIZER.pad_token_id,
        scale_factor=2,
    )
    return transformers.SmolVLMForConditionalGeneration(config)


def _mistral3() -> nn.Module:
    config = transformers.Mistral3Config(
        text_config=COMMON | SPECIAL | HEAD | {"model_type": "mistral"},
        vision_config=IMAGE | HEAD | {"model_type": "pixtral"},
        image_token_index=LAST,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    special = {key: SPECIAL[key] for key in ("pad_token_id", "eos_token_id")}
    config = transformers.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **sizes, **special)
    return transformers.T5ForConditionalGeneration(config)


def _bart() -> nn.Module:
    layers = {f"{side}_layers": 2 for side in ("encoder", "decoder")}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        max_position_embeddings=256,
        dropout=0.0,
        forced_eos_token_id=TOKENIZER.eos_token_id,
        decoder_start_token_id=TOKENIZER.eos_token_id,
        **layers,
        **heads,
        **widths,
        **SPECIAL,
    )
    return transformers.BartForConditionalGeneration(config)


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gemma3 (multimodal)": _gemma3,
    "llava (multimodal)": _llava,
    "mistral3 (multimodal)": _mistral3,
    "qwen2_vl (multimodal)": _qwen2_vl,
    "qwen3_vl (multimodal)": _qwen3_vl,
    "smolvlm (multimodal)": _smolvlm,
    "bart (encoder-decoder)": _bart,
    "t5 (encoder-decoder)": _t5,
}
FAMILIES = [*CAUSAL, *OTHERS]


@cache
def _known(config_class: type) -> frozenset[str]:
    """Settings that a configuration knows, by whatever name."""
    return frozenset({*config_class().to_dict(), *config_class.attribute_map})  # type: ignore[attr-defined]


def _causal(class_name: str, settings: dict[str, Any]) -> nn.Module:
    model_class = getattr(transformers, class_name)
    known = _known(model_class.config_class)
    common = {key: value for key, value in (COMMON | dict.fromkeys(WITHOUT_DROPOUT, 0.0)).items() if key in known}
    return model_class(model_class.config_class(**common | SPECIAL | settings))


def build(name: str, seed: int = 0) -> Any:
    """A model in eval mode, with weights large enough that each matters; the same for the same arguments."""
    torch.manual_seed(seed)
    model = OTHERS[name]() if name in OTHERS else _causal(*CAUSAL[name])
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for module in model.modules():
            large = isinstance(module, nn.Linear | nn.Embedding) or type(module).__name__ == "Conv1D"
            for parameter_name, parameter in module.named_parameters(recurse=False):
                experts = parameter.dim() == 3 and not isinstance(module, nn.Conv1d)
                if (large and parameter_name == "weight") or experts or not bool(torch.isfinite(parameter).all()):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()
