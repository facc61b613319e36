"""Preference models, for `cai pmp` and `cai train-pm`.

reading  from a conversation to the ids whose last one is scored;  pairs: comparisons as such ids
loop     epochs, batches, steps, checkpoints;  losses: of one step, and of the held-out part
run      the whole of it: load, rehearse the save, train, save with a card
"""
