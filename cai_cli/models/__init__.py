"""All contact with transformers and peft.

model_directory  what a directory says of itself, without torch: whole files, and which role the model can play
load        models, tokenizers, devices;  loaded: whether it is the whole model;  merging: adapter directories
adapters    LoRA in training;  chat: templates and token ids
score       the token whose state is a preference model's score;  language_head: log-probabilities beside it
packing     rows without padding, a shared start once;  packed_attention: how they meet in attention
"""

import logging

# bitsandbytes warns of an optional 4-bit CPU kernel when peft imports it (peft comes with any import of the Trainer), and of
# the half precision of its 8-bit products at each of them.
for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(name).setLevel(logging.ERROR)
