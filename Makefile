# Set-up, checks, the demo, and the chain on models of one's own.
#
#   make demo        the whole chain on the embedded micro-world, a table and a plot at the end
#   make test        the tests
#   make studies     what of the article shows on the micro-world: 55 minutes on two cores
#   make pipeline    the chain as file targets, on models of one's own with ARGS=my.mk: see below
#
# Everything installs into .venv, pinned by constraints.txt.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CAI ?= $(BIN)/cai

.PHONY: all setup demo test check fix pipeline studies bench clean
all: check

setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

DEMO ?= runs/demo
SEED ?= 0
demo: setup
	$(CAI) demo --out $(DEMO) --seed $(SEED)

JOBS ?= 2
test: setup
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# scripts/bench/pmp_data.py takes a dump, scripts/bench/ppo.py an environment with TRL 1.12: see their --help.
bench: setup
	$(BIN)/python scripts/bench/revise.py
	$(BIN)/python scripts/bench/label.py

# Goes on where it was stopped. `python scripts/studies/page.py --out $(STUDIES)` writes the page of scripts/studies.
STUDIES ?= runs/studies
studies: setup
	$(BIN)/python scripts/studies/run.py --out $(STUDIES) --jobs $(JOBS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The chain as file targets: make reruns only what is stale and continues what was cut off. A model directory is complete when
# its cai.json is there. The variables below are set in a file of `VAR = value` lines, ARGS, on which every stage depends: one
# that finds its own settings as they were does nothing.
#
#   make pipeline                                   the micro-world
#   make pipeline ARGS=scripts/h200_7b.mk           one's own models on a GPU server
ARGS ?= scripts/microworld.mk
include $(ARGS)
RUN ?= runs/pipeline
CONSTITUTION ?= article
FEEDBACK ?= $(BASE)
AI_WEIGHT ?= 1

OLD := --if-changed restart
# A recipe ends in `touch`: a stage that finds its inputs' content unchanged leaves its output alone, also its time stamp.

pipeline: setup $(RUN)/rl-cai/cai.json

$(RUN)/revisions.jsonl: $(ARGS) $(PROMPTS) $(wildcard $(CONSTITUTION)) | setup
	$(CAI) revise --model $(MODEL) --prompts $(PROMPTS) --constitution $(CONSTITUTION) $(REVISE) $(OLD) --out $@ && touch $@

$(RUN)/samples.jsonl: $(ARGS) $(HELPFUL_PROMPTS) | setup
	$(CAI) sample --model $(MODEL) --prompts $(HELPFUL_PROMPTS) $(SAMPLE) $(OLD) --out $@ && touch $@

$(RUN)/sl-cai/cai.json: $(ARGS) $(RUN)/revisions.jsonl $(RUN)/samples.jsonl
	$(CAI) sft --model $(BASE) --data $(RUN)/revisions.jsonl --data $(RUN)/samples.jsonl $(SFT) $(OLD) --out $(@D) && touch $@

$(RUN)/comparisons.jsonl: $(ARGS) $(RUN)/sl-cai/cai.json $(LABEL_PROMPTS) $(wildcard $(CONSTITUTION))
	$(CAI) label --model $(RUN)/sl-cai --prompts $(LABEL_PROMPTS) --feedback-model $(FEEDBACK) \
	  --constitution $(CONSTITUTION) $(LABEL) $(OLD) --out $@ && touch $@

$(RUN)/pmp/cai.json: $(ARGS) $(POSTS) | setup
	$(CAI) pmp --model $(BASE) --posts $(POSTS) $(PMP) $(OLD) --out $(@D) && touch $@

$(RUN)/pm/cai.json: $(ARGS) $(RUN)/pmp/cai.json $(RUN)/comparisons.jsonl $(HUMAN)
	$(CAI) train-pm --model $(RUN)/pmp --comparisons $(RUN)/comparisons.jsonl:$(AI_WEIGHT) \
	  $(addprefix --comparisons ,$(HUMAN)) $(TRAIN_PM) $(OLD) --out $(@D) && touch $@

$(RUN)/rl-cai/cai.json: $(ARGS) $(RUN)/sl-cai/cai.json $(RUN)/pm/cai.json $(RL_PROMPTS)
	$(CAI) ppo --model $(RUN)/sl-cai --pm $(RUN)/pm $(addprefix --prompts ,$(RL_PROMPTS)) $(PPO) $(OLD) --out $(@D) && touch $@
