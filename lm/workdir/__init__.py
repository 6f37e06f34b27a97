"""Keeps what a run leaves in its workdir: verified checkpoints, metrics, the log.

How files are made durable is in `lm/host/storage.py`. Start with `checkpoint.py`.
"""
