# `make pipeline ARGS=scripts/h200_7b.mk`: a 7B model on one GPU of 80 GB or more. Put your own models and data here.
# Full fine-tuning holds 16 bytes a weight, 112 GB, and its optimiser's temporaries come on top: so LoRA in all trainers.
# The settings are those of scripts/configs/one-gpu, which says what each needs, but for its held-out parts and evaluations: add
# `--held-out 0.01` to SFT and `--eval-prompts FILE --load-best-model-at-end` to PPO where you want them.
RUN = runs/7b
MODEL = path/to/helpful-only-7b
BASE = path/to/base-7b
FEEDBACK = $(BASE)
PROMPTS = data/harmful/revise.jsonl
HELPFUL_PROMPTS = data/helpful/sample.jsonl
LABEL_PROMPTS = data/harmful/label.jsonl
RL_PROMPTS = data/harmful/rl.jsonl data/helpful/rl.jsonl
POSTS = data/Posts.xml
HUMAN = data/comparisons/human.jsonl
CONSTITUTION = article

GENERATE := --dtype bfloat16 --max-new-tokens 512 --batch-size 128
ADAPTERS := --lora --lora-r 64 --lora-alpha 128 --dtype bfloat16 --bf16 --gradient-checkpointing --per-device-train-batch-size 8
REVISE = --rounds 4 $(GENERATE)
SAMPLE = -n 2 $(GENERATE)
SFT = $(ADAPTERS) --quantize 4bit --packing --learning-rate 2e-4 --warmup-steps 20 --gradient-accumulation-steps 8
LABEL = --few-shot default --feedback-dtype bfloat16 $(GENERATE)
PMP = $(ADAPTERS) --max-pairs 500000 --learning-rate 1e-4 --warmup-steps 20 --gradient-accumulation-steps 8
TRAIN_PM = $(ADAPTERS) --learning-rate 1e-4 --warmup-steps 20 --gradient-accumulation-steps 8
PPO = $(ADAPTERS) --learning-rate 1e-5 --value-learning-rate 2e-5 --steps 500 --rollout-batch-size 256 --max-new-tokens 256
