"""What the model stages import, in one place: a process forked after it starts at once (`stages/demo.py`). TRL, which
`sft` alone needs, is left to it: the first stage begins sooner by that.
"""

from cai_cli.processes.interruption import while_parent_lives

with while_parent_lives():
    import cai_cli.models  # first, since it quiets a warning of libraries that the next lines import

    # isort: split
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    import cai_cli.training.ppo.run
    import cai_cli.training.preference.run

__all__ = ["AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "cai_cli"]
