"""`emu selftest`: whether this machine's libunicorn does what the CPU layer builds on, and what an exit costs here.

`traps` is the table of checks, `costs` measures, `runner` keeps whatever goes wrong in processes of its own, `report`
puts it all together. Nothing is downloaded and no guest is booted: a micro guest of a few instructions does it.
"""
