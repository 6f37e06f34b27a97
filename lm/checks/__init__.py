"""What `lm.verify` proves of a config: changes that must leave a gradient as it is."""
