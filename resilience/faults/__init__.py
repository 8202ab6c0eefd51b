"""The faults: what is broken around a server, a file for each kind."""
