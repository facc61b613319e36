"""`cai`, `python -m cai_cli`, `torchrun -m cai_cli ppo ...` and `accelerate launch -m cai_cli ...`."""

from cai_cli.console.ending import one_line


def main() -> None:
    """Entry point. Signals are listened to first: what is imported next takes a moment, and Ctrl-C may come
    within it.
    """
    with one_line():
        from cai_cli.cli import main as command_line
        from cai_cli.processes.ranks import leave_group

        command_line()
        # Of a run that came through: taking leave waits for the others, who may not come where one has failed
        leave_group()


if __name__ == "__main__":
    main()
