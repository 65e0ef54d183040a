"""Radiona ULX3S: what stands around the core on a board with SDRAM and a serial line."""
