"""What trains: `sft`, `preference`, `ppo`; and what they share: losses, modes, checkpoints, rehearsal, metrics, trackers, cards."""
