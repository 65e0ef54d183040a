"""FlightLLM toolkit: from an LLM checkpoint to an FPGA accelerator and back to text."""

__all__ = ["__version__"]

__version__ = "0.1.0"
