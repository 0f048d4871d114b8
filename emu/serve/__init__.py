"""Machines on a page in the browser: `emu serve`.

`web` is the server and who may ask it, `viewer` one page that is open, `machines` what there is to see, each machine in
a process of its own (`emu.process`), `scrollback` what a console showed, and `snapshots` what was saved. The page is in
page/; its terminal is xterm.js, which `npm` gets.
"""
