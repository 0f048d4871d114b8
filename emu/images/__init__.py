"""Guest root file systems: archives made, read and expanded on the host, without root and without mounting."""
