"""Doing many runs: on this machine, several at a time, or as jobs of a cluster.

`local.LocalSweep` is the scheduler; it starts one process per run (`worker`), takes what a run has come to from its
folder (`state`) and keeps a journal of what happened (`journal`). `board` shows how far a recipe is, `cluster` hands
chains of runs to Slurm.
"""
