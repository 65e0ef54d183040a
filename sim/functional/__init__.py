"""The bit-exact simulator: the living definition of the instruction set."""
