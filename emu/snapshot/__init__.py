"""A machine on disk: its state as JSON, its RAM as a sparse file, restored by mapping it (docs/snapshot.md)."""
