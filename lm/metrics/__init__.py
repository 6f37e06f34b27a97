"""Metrics of predictions and of generated texts, on the host, without a model.

The public functions of a file are the metrics that a config can name.
"""
