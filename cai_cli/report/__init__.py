"""One page that shows a run: what was made of what, what to be warned of, chains, replies, labels, curves, figures.

In: what stages and evaluations left in a directory, as it lies there. Out: one HTML file that asks for nothing.
"""
