"""PPO, for `cai ppo`.

run        the whole of it: rehearse the save, loop, report, save with a card
trainer    one step, numbered: rollout, score, KL penalty, advantages, update
models     policy and reference, value and preference model: two copies each, or one backbone with an adapter
critic     preference model and value function, in this process or in one of their own
learner    K epochs of minibatches over a rollout, with the clipped losses of policy and value
episodes   a rollout as tensors;  rewards: from scores to rewards, the gold PM
forward    log-probabilities and values of response tokens
run_state  evaluations, best policy, gold guard (best), checkpoints;  measures: what a batch comes to
settings   the flags in groups;  log: metrics, timings, samples, trackers, live table;  plot: score against √KL
"""
