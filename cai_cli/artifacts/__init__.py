"""Artifacts that survive being killed: the same command again carries on, another command on the same --out
stops.

One process at a time: each is held (see `locks`) from before it is looked at until it is done. A step that
cannot be undone at once comes last, so that a kill between any two steps leaves what the same command can go
on from. No torch.

rows     JSONL files that grow row by row; shards of them, and the ranks of one launch
results  files that are written at once
models   directories that are complete when their `cai.json` is there
claims   what to do with what lies there;  identity: whether the command would make it;  inputs, fingerprints: by what content
manifest what is written down of a run;  places: where;  ancestry: from what the inputs came
rejects  rows that were not accepted, and the next step
"""
