"""Scheduler of many runs: on this machine, several at a time, or as jobs of a cluster.

`local.LocalSweep` starts one process per run (`worker`), reads the status of a run from its folder
(`experiments.status`) and appends to the event log (`event_log`). `sanity_check` compares zero-shot CLIP with known
figures first, `progress` prints the table of `sweep.py status`, `cluster` submits chains of runs to Slurm.
"""
