"""What the model stages import, in one place: a process forked after it starts at once (`stages/demo.py`)."""

from cai_cli.processes.interruption import while_parent_lives

with while_parent_lives():
    import cai_cli.models  # first, since it quiets a warning of bitsandbytes, which the next lines import

    # isort: split
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.trainer.sft_trainer import SFTTrainer

    import cai_cli.training.ppo.run
    import cai_cli.training.preference.run
    import cai_cli.training.sft.run

__all__ = [
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "SFTTrainer",
    "cai_cli",
]
