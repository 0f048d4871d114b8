"""What the running machines of a user do: `emu top`.

Each machine gives a `report` of itself (`emu.presence`), `find` asks all that there are, `table` shows them.
"""
