"""One run by several processes, and a process that is told to stop."""
