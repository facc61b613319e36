"""What the cards of the four trained models say in words: what each is, how to use it, what to beware of.

The Python of a card runs as it stands in the model's folder; on the Hub, `cai push` puts the model's name in
place of `"."`.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "[Bai et al. 2022](https://arxiv.org/abs/2212.08073)"
GENERATE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path)
messages = [{"role": "user", "content": "How do I bake bread?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
SCORE = """\
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

path = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path)
question, answer = "How do I bake bread?", "Mix flour, water, salt and yeast."
TEXT
ids = tokenizer(text, add_special_tokens=SPECIAL)["input_ids"]
if ids[-1] != tokenizer.eos_token_id:  # the score is read at the EOS that ends the text
    ids.append(tokenizer.eos_token_id)
with torch.no_grad():
    print(model(torch.tensor([ids])).logits[0, 0].item())"""
CHAT_TEXT = """\
messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()"""
QA_TEXT = 'text = f"Question: {question}\\n\\nAnswer: {answer}"'
DIFFERENCES = "Only differences between the scores of replies to one prompt mean something."
QA_NOTE = f"It reads a question and its answer, not a chat. {DIFFERENCES}"

BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "bf16")
RATES = ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", *BATCHES, "max_length")
PAIRWISE = (*RATES, "lm_coef", "center_rewards_coefficient")


@dataclass(frozen=True, slots=True)
class Use:
    """How a kind of model is used: its task on the Hub, in Python, by a command."""

    pipeline_tag: str
    python: str
    command: str


LANGUAGE_MODEL = Use(
    "text-generation", GENERATE, "cai sample --model . --prompts prompts.jsonl --out replies.jsonl"
)
PREFERENCE_MODEL = Use("text-classification", SCORE, "cai score --pm . replies.jsonl --out scored.jsonl")


@dataclass(frozen=True, slots=True)
class CardText:
    """`weight` is what the number behind an input means; `settings` are the options that the card lists."""

    title: str
    about: str
    tags: tuple[str, ...]
    use: Use
    weight: str
    settings: tuple[str, ...]
    limits: str
    note: str = ""


CARDS = {
    "sft": CardText(
        title="SL-CAI",
        about=f"A language model finetuned on replies that a model revised under a constitution, and on helpful samples: the "
        f"supervised stage of Constitutional AI ({PAPER}, section 3). The loss is on the completion only.",
        tags=("sft", "trl"),
        use=LANGUAGE_MODEL,
        weight="proportion",
        settings=(*RATES, "packing", "targets", "train_on_thinking"),
        limits="The completions were written by a model under a constitution and not checked by people. Evaluate before use.",
    ),
    "pmp": CardText(
        title="Preference model, pretrained",
        about="A preference model pretrained on votes for answers of Stack Exchange (Askell et al. 2021, "
        "[arXiv 2112.00861](https://arxiv.org/abs/2112.00861)).",
        tags=("reward-model", "preference-model", "pmp"),
        use=PREFERENCE_MODEL,
        weight="weight",
        settings=(*PAIRWISE, "format", "pairs_per_question", "min_score_gap", "binarise"),
        limits="Votes are noisy and say nothing of harmlessness: it is a start for finetuning, not a judge. The texts of Stack "
        "Exchange are CC BY-SA; `comparisons.jsonl` names site, question, answers and authors of each pair.",
        note=DIFFERENCES,
    ),
    "train-pm": CardText(
        title="Preference model",
        about=f"A preference model trained on comparisons with soft labels, of a model under a constitution and of people "
        f"({PAPER}, section 4.2).",
        tags=("reward-model", "preference-model"),
        use=PREFERENCE_MODEL,
        weight="loss weight",
        settings=PAIRWISE,
        limits="It says which of two replies its labels would prefer. A policy trained against it will find what it gets wrong.",
        note=DIFFERENCES,
    ),
    "ppo": CardText(
        title="RL-CAI",
        about=f"A language model trained by proximal policy optimisation against a preference model of AI feedback: the last "
        f"stage of Constitutional AI ({PAPER}, section 4).",
        tags=("rlaif", "ppo", "reinforcement-learning"),
        use=LANGUAGE_MODEL,
        weight="share of the batch",
        settings=(
            "rollout_batch_size",
            "num_ppo_epochs",
            "num_mini_batches",
            "learning_rate",
            "value_learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "critic_warmup_steps",
            "kl_coef",
            "target_kl",
            "max_kl",
            "clip_range",
            "gamma",
            "lam",
            "max_new_tokens",
            "temperature",
            "load_best_model_at_end",
            "bf16",
        ),
        limits="What the preference model rewards is not what people want, where the two differ; look for replies that please it "
        "alone. The feedback was a model's under a constitution and not checked by people. Evaluate before use.",
    ),
}
