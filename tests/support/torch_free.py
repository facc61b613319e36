"""The command as a program that fails where it has loaded what takes seconds to load."""

HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "lxml", "pandas")
PROGRAM = f"""
import sys
from cai_cli.__main__ import main
sys.argv = ["cai", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code or exit.code == 2, exit.code
found = [name for name in {HEAVY!r} if name in sys.modules]
assert not found, found
"""
