"""Small random models of transformers' families: name -> how one is built.

What a fault needs to show is there: windows of 8 or 32 tokens, a change of rotary frequencies at 64, weights
large enough that what a token sees matters.
"""

from __future__ import annotations

from typing import Any

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = {"num_key_value_heads": 2}
HEAD = {"head_dim": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
WINDOW = 8

# Name -> (model type, what its configuration has besides SIZES). What a type does not know of SIZES is left
# out.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "llama-dynamic": (
        "llama",
        {
            **GROUPED,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
    "llama-yarn": (
        "llama",
        {
            **GROUPED,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama-llama3": (
        "llama",
        {
            **GROUPED,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama4_text": (
        "llama4_text",
        {
            **GROUPED,
            **HEAD,
            **EXPERTS,
            "intermediate_size_mlp": 64,
            "attention_chunk_size": WINDOW,
            "moe_layers": [1],
            "no_rope_layers": [1, 0],
        },
    ),
    "mistral": ("mistral", {**GROUPED, "sliding_window": WINDOW}),
    "ministral": (
        "ministral",
        {**GROUPED, **HEAD, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ministral3": ("ministral3", {**GROUPED, **HEAD}),
    "mixtral": ("mixtral", {**GROUPED, **EXPERTS}),
    "qwen2": ("qwen2", GROUPED),
    "qwen2-window": (
        "qwen2",
        {**GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen2_moe": ("qwen2_moe", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": ("qwen3", {**GROUPED, **HEAD}),
    "qwen3_moe": ("qwen3_moe", {**GROUPED, **HEAD, **EXPERTS}),
    "qwen3_next": (
        "qwen3_next",
        {
            **GROUPED,
            **HEAD,
            **EXPERTS,
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "qwen3_5_text": (
        "qwen3_5_text",
        {
            **GROUPED,
            **HEAD,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "gemma": ("gemma", {**GROUPED, **HEAD}),
    "gemma2": ("gemma2", {**GROUPED, **HEAD, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3_text": (
        "gemma3_text",
        {
            **GROUPED,
            **HEAD,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "vaultgemma": ("vaultgemma", {**GROUPED, **HEAD, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}),
    "phi": ("phi", {}),
    "phi3": ("phi3", GROUPED),
    "phi3-longrope": (
        "phi3",
        {
            **GROUPED,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                **FACTORS,
            },
        },
    ),
    "phimoe": ("phimoe", {**GROUPED, **EXPERTS}),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4 * WINDOW,
        },
    ),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**GPT, "n_head": 4, "rotary_dim": 4}),
    "openai-gpt": ("openai-gpt", GPT),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": True}),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("biogpt", {}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512}),
    "falcon": ("falcon", {"multi_query": True, "alibi": False}),
    "falcon-alibi": ("falcon", {"multi_query": False, "alibi": True}),
    "falcon-new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "stablelm": ("stablelm", GROUPED),
    "starcoder2": ("starcoder2", {**GROUPED, "sliding_window": WINDOW}),
    "olmo": ("olmo", GROUPED),
    "olmo2": ("olmo2", GROUPED),
    "olmo3": (
        "olmo3",
        {**GROUPED, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmoe": ("olmoe", {**GROUPED, **EXPERTS}),
    "granite": ("granite", {**GROUPED, "logits_scaling": 2.0}),
    "granitemoe": ("granitemoe", {**GROUPED, **EXPERTS}),
    "granitemoeshared": ("granitemoeshared", {**GROUPED, **EXPERTS, "shared_intermediate_size": 32}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            **GROUPED,
            **EXPERTS,
            **MAMBA,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
        },
    ),
    "cohere": ("cohere", GROUPED),
    "cohere2": (
        "cohere2",
        {**GROUPED, **HEAD, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "glm": ("glm", {**GROUPED, **HEAD}),
    "glm4": ("glm4", {**GROUPED, **HEAD}),
    "glm4_moe": ("glm4_moe", {**GROUPED, **HEAD, **LATENT}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "num_key_value_heads": 4}),
    "deepseek_v3": ("deepseek_v3", {**LATENT, "num_key_value_heads": 4}),
    "minicpm3": ("minicpm3", {**LATENT, "num_key_value_heads": 4}),
    "gpt_oss": (
        "gpt_oss",
        {
            **GROUPED,
            **HEAD,
            **EXPERTS,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "exaone4": (
        "exaone4",
        {**GROUPED, **HEAD, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ernie4_5": ("ernie4_5", {**GROUPED, **HEAD}),
    "smollm3": ("smollm3", {**GROUPED, "no_rope_layers": [1, 0]}),
    "seed_oss": ("seed_oss", {**GROUPED, **HEAD}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**GROUPED, **HEAD}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**GROUPED, **HEAD, **EXPERTS, "moe_topk": 2}),
    "dots1": ("dots1", {**GROUPED, **HEAD, **LATENT}),
    "helium": ("helium", {**GROUPED, **HEAD}),
    "arcee": ("arcee", {**GROUPED, **HEAD}),
    "apertus": ("apertus", GROUPED),
    "nemotron": ("nemotron", GROUPED),
    "persimmon": ("persimmon", {}),
    "nanochat": ("nanochat", GROUPED),
    "bitnet": ("bitnet", GROUPED),
    "diffllama": ("diffllama", GROUPED),
    "cwm": (
        "cwm",
        {**GROUPED, **HEAD, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "doge": ("doge", {**GROUPED, "keep_window_size": 2048}),
    "modernbert-decoder": (
        "modernbert-decoder",
        {"local_attention": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "ctrl": ("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 512}),
    "jetmoe": ("jetmoe", {**EXPERTS, "num_key_value_heads": 2, "kv_channels": 8, "num_layers": 2}),
    "minimax": (
        "minimax",
        {
            **GROUPED,
            **HEAD,
            **EXPERTS,
            "block_size": WINDOW,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "minimax_m2": ("minimax_m2", {**GROUPED, **HEAD, **EXPERTS}),
    "lfm2": ("lfm2", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "jamba",
        {
            **GROUPED,
            **EXPERTS,
            **MAMBA,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("bamba", {**GROUPED, **MAMBA, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**GROUPED, **HEAD, **MAMBA, "mamba_d_ssm": 64}),
    "zamba2": (
        "zamba2",
        {
            "num_key_value_heads": 4,
            **MAMBA,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "chunk_size": 8,
            "adapter_rank": 4,
        },
    ),
    "nemotron_h": (
        "nemotron_h",
        {
            **GROUPED,
            **HEAD,
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            **EXPERTS,
            "n_routed_experts": 4,
        },
    ),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "rwkv": ("rwkv", {"context_length": 512, "attention_hidden_size": 32}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**GROUPED, "lru_width": 32, "attention_window_size": WINDOW, "num_hidden_layers": 3},
    ),
    "olmo_hybrid": (
        "olmo_hybrid",
        {
            **GROUPED,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
}


def build(name: str, vocabulary: int, pad: int = 0, eos: int = 2) -> Any:
    """A random causal language model of the family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, settings = FAMILIES[name]
    tokens = {"vocab_size": vocabulary, "pad_token_id": pad, "eos_token_id": eos, "bos_token_id": 1}
    known = AutoConfig.for_model(kind)
    kept = {key: value for key, value in SIZES.items() if hasattr(known, key)}
    config = AutoConfig.for_model(kind, **{**kept, **settings, **tokens})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
    for weight in model.parameters():
        weight.data.mul_(3)
    return model
