"""Supervised fine-tuning, for `cai sft`, on TRL's SFTTrainer.

settings  the flags;  data: targets of revisions and samples, as token rows
run       the whole of it: rehearse the save, train, save with a card
trainer   the model and TRL's trainer;  hf_trainer: checkpoints, stops, metrics and learning-rate checks of a transformers Trainer
"""
