"""One file per subcommand, each `Options` (the flags) and `run` (the story). Stages meet only at files on
disk.

red-team prompts ─┐
helpful-only LM ──┴─> revise ─> revisions.jsonl ─┐
helpful prompts ────> sample ─> samples.jsonl ───┴─> sft ─> sl-cai/ ─┬─> label ─> comparisons.jsonl ─┐
base LM ─────────────────────────────────────────────^               │                               │
Stack Exchange dump ─> pmp ─> pmp/ ──────────────────────────────────┼─────────────> train-pm ─> pm/ ┤
human helpfulness comparisons ───────────────────────────────────────┼────────────────^              │
                                                                     └───────────> ppo ─> rl-cai/ <──┘
"""
