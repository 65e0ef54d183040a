"""The host's side of the device: `Control` joins the AXI4-Lite slave, the registers and the run."""

from flightllm.hw.control.lite import lite_signature
from flightllm.hw.control.unit import Control

__all__ = ["Control", "lite_signature"]
