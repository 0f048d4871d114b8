"""Warm machines for many short jobs: each job gets a fresh clone, and nothing of one reaches the next.

One machine, the zygote, is restored from a snapshot, warmed, and never runs a job (`stock`). Its clones stand ready
before they are needed; one that was used is killed. `pool` is what users hold, `supply` a queue of who waits, `watch`
ends what takes too long or too much, `metrics` counts.
"""
