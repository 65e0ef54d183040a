"""The cycle model: how long a program takes, unit by unit, on a configuration's hardware."""

from flightllm.sim.cycle.device import CycleDevice
from flightllm.sim.cycle.memory import PlainMemory

__all__ = ["CycleDevice", "PlainMemory"]
