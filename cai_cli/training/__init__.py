"""What trains: `sft`, `preference`, `ppo`; and what they share: checkpoints, rehearsals, metrics, trackers,
cards.
"""
