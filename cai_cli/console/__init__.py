"""The person at the terminal: flags, help, messages, hints for mistakes, and how a command ends. No torch."""
