# `make pipeline` on the embedded micro-world: inputs written by `cai demo --inputs-only`.
RUN ?= runs/pipeline
INPUTS := $(RUN)/inputs
WORLD := $(INPUTS)/world
MODEL ?= $(INPUTS)/models/helpful-only
BASE ?= $(INPUTS)/models/base
FEEDBACK ?= $(MODEL)
PROMPTS ?= $(WORLD)/harmful-sft.jsonl
HELPFUL_PROMPTS ?= $(WORLD)/helpful-sft.jsonl
LABEL_PROMPTS ?= $(WORLD)/harmful-label.jsonl
RL_PROMPTS ?= $(WORLD)/rl.jsonl
POSTS ?= $(WORLD)/posts.xml
HUMAN ?= $(WORLD)/human-helpfulness.jsonl
CONSTITUTION ?= $(WORLD)/constitution.yaml

GENERATE := --max-new-tokens 64 --batch-size 256
OPTIMISE := --per-device-train-batch-size 32 --max-length 256
REVISE ?= --few-shot none --rounds 2 --max-reject-rate 1 $(GENERATE)
SAMPLE ?= -n 2 $(GENERATE)
SFT ?= --learning-rate 8e-4 --lr-scheduler-type linear --num-train-epochs 2 $(OPTIMISE)
LABEL ?= -n 8 --principles-per-pair 2 $(GENERATE)
PMP ?= --format chat --pairs-per-question 2 --min-score-gap 2 --lm-coef 1 --learning-rate 1e-3 $(OPTIMISE)
AI_WEIGHT ?= 5
TRAIN_PM ?= --lm-coef 0.5 --learning-rate 1e-3 --lr-scheduler-type linear $(OPTIMISE)
PPO ?= --steps 96 --rollout-batch-size 128 --num-ppo-epochs 1 --learning-rate 2e-4 --lr-scheduler-type cosine \
  --value-learning-rate 5e-4 --kl-coef 0.2 --per-device-train-batch-size 64 --max-new-tokens 64 --batch-size 256

WRITTEN := $(PROMPTS) $(HELPFUL_PROMPTS) $(LABEL_PROMPTS) $(RL_PROMPTS) $(POSTS) $(HUMAN) $(CONSTITUTION)
$(WRITTEN) &: | setup
	$(CAI) demo --inputs-only --out $(INPUTS)
