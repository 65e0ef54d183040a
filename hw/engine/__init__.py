"""The matrix engine: MM and MV. `MatrixEngine` is the unit; the other files are its parts."""

from flightllm.hw.engine.size import EngineSize, engine_size
from flightllm.hw.engine.unit import MatrixEngine

__all__ = ["EngineSize", "MatrixEngine", "engine_size"]
