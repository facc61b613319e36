"""AI feedback: pairs of replies, the questions a feedback model gets about them, soft labels and their
diagnostics.
"""
