"""Boards that are simulated: real PYNQ in front of registers and memory that a simulator serves."""
