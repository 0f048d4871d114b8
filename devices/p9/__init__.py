"""A 9P2000.L file server: host directories for a guest that is not to be trusted with any other.

`server` takes frames; `names`, `files` and `attributes` have one function per message; `nodes` and `fids` hold what
the guest has walked to; `mapping` says what owners and modes become on the host; `guards` is what refuses an attack.
"""
