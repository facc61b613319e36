"""The same numbers sooner, tried against the plain computation of each model before they are used.

shortcuts        what a model can do, found once after loading
packed_rows      rows without padding, a shared start once;  packed_attention: how they meet in attention
prefix_tree      texts by what they have in common;  tree_rows: as rows of one pass;  batches: by length
"""
