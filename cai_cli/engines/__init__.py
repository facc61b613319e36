"""Text generation and option scoring behind one small interface; `base` has the interface, the rest implement
it.
"""
