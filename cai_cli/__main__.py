"""`python -m cai_cli`, `torchrun -m cai_cli ppo ...` and `accelerate launch -m cai_cli ...`."""

from cai_cli.cli import main

if __name__ == "__main__":
    main()
