"""All contact with transformers and peft.

paths       what a directory says of itself, without torch: whole files, and which role the model can play
load        models;  tokenizers, configs, devices;  loaded: whether it is the whole model;  merging: adapter directories
adapters    LoRA in training;  saved_configs: what a saved model says of itself;  finite: weights and outputs that are numbers
chat        conversations as token ids;  templates: what a tokenizer makes of them
score       the token whose state is a preference model's score;  language_head: log-probabilities beside it
compare     whether two directories hold one model;  portrait: what `cai inspect` shows of one
"""

import logging

# bitsandbytes warns of an optional 4-bit CPU kernel when peft imports it (peft comes with any import of the
# Trainer), and of the half precision of its 8-bit products at each of them.
for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(name).setLevel(logging.ERROR)
