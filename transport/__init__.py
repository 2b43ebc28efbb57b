"""Entropic optimal transport: the Sinkhorn solver and the scores of PLOT, PLOT++ and ALIGN built on it."""
