"""Figures of predictions and texts, on the host; nothing here knows a model."""
