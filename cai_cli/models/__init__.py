"""All contact with transformers and peft.

load        models, tokenizers, devices;  adapters: LoRA;  chat: templates and token ids
score       the token whose state is a preference model's score;  language_head: log-probabilities beside it
packing     rows without padding, a shared start once;  packed_attention: how they meet in attention
"""
