"""What holds for all tests: the machine that they run on may be slow, and busy with others."""

from __future__ import annotations

from hypothesis import settings

# No example may fail because the host did something else for a fifth of a second
settings.register_profile("busy host", deadline=None)
settings.load_profile("busy host")
