"""What a run leaves behind: checkpoints that are verified, metrics, the log.

How bytes become durable is in `lm/host/storage.py`. Start with `checkpoint.py`.
"""
