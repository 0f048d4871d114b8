"""Benchmarks and endurance runs; each is a module of its own: `python -m bench.boot`; `python -m bench` runs all.

Figures on a machine that others use drift, so every ratio comes from runs made in turn, and from their medians.
"""
