"""Random calls of the operators against the reference in float64: ``python -m tests.stress --minutes 10``.

``draw`` makes a call from a seed and a number, ``bounds`` computes what the reference returns and how far rounding can
move it, ``judge`` runs a call and compares, and ``__main__`` repeats this in processes that may crash.
"""
