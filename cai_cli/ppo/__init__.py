"""The parts of PPO that `stages/ppo.py` tells the story of.

trainer    one step, numbered: rollout, score, KL penalty, advantages, update
models     policy and reference, value and preference model: two copies each, or one backbone with an adapter
episodes   a rollout as tensors;  rewards: from scores to rewards, the gold PM;  update: the clipped losses' epochs
forward    log-probabilities and values of response tokens
progress   evaluations, best policy, gold guard (best), checkpoints;  measures: what a batch comes to
settings   the flags in groups;  log: metrics, timings, samples, trackers, live table;  plot: score against √KL
"""
