"""The special function unit: float32 lanes, sums in the fixed order, scalars, sequencer."""
