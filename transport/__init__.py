"""Entropic optimal transport: the Sinkhorn solver, and the distances of many pairs of sets."""
