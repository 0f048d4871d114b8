"""Several machines in one test: named, driven together, on a network of their own, with a report when something fails.

`fleet` has the machines and what they have in common, `machine` what a test does with one of them, `origin` where a
machine comes from, `log` and `report` what a test leaves to read, `script` the tests that `emu test` runs.
"""
