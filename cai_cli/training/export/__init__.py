"""PPO on many machines: what `cai export openrlhf` and `cai export verl` write for engines made for that, and the
way back.

settings   the flags of both: those of `cai ppo`, and the machines
carried    what becomes of each of our settings: its equal there, what is done for it here, or nothing
openrlhf, verl   the settings of each engine, with the version that they were checked against
models     whether policy and preference model can be read by the engine as they are here
folder     the exported directory: prompts, settings, launch.sh, README.md
serving    `cai serve`: the preference model's scores over HTTP, EOS included, for either engine
policy     `cai import policy`: what the engine trained, checked and taken back
"""
