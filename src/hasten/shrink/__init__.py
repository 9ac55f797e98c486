"""Fewer weights: what hangs together, and what can go."""
