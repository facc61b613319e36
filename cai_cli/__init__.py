"""Constitutional AI from the command line: `cai --help`."""

__version__ = "0.2.0"
