"""The parts of PPO that `stages/ppo.py` tells the story of: `episodes` (rollout and scores) and `update`."""
