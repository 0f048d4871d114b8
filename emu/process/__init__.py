"""Machines in processes of their own: driven over a socket, forked in a millisecond, gone with who uses them.

A `Machine` runs in its caller's thread. One that has to run beside its caller is in a process with nothing else in it
(`server`), which is a fork of one that was there (`forking`) or a fresh interpreter (`spawn`), and `client` is what its
user holds. What the two say to each other is in `messages`, and `wire` is how it gets across.
"""
