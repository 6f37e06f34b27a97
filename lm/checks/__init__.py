"""The checks of `lm.verify`: changes that must not change a gradient, and resume."""
