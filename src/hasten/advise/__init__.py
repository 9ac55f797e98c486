"""Advice before anything is tried: what bounds the model on this machine, what to try first, and afterwards whether that held."""
