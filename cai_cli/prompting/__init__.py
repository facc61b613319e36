"""Every word that a model reads, and what is kept of what it writes. No torch."""
