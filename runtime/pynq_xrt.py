"""Alveo cards for PYNQ 4, over XRT's own Python module: a `pynq.Device` of this package.

PYNQ 4 retired its XRT device for cards (it probes to nothing). Buffers and programming go through
`pyxrt` as its binding documents them. Registers of a user-managed kernel go through `pyxrt.ip`
where a release has it, `pyxrt.kernel.read_register` where it still has that (before XRT 2.15), and
else through XRT's C library.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any, Protocol, cast

import numpy as np
import pynq
from pynq.buffer import PynqBuffer
from pynq.pl_server.xclbin_parser import XclBin

from flightllm.spec.errors import DeviceError

__all__ = ["AlveoDevice", "CoreLibrary", "RegisterAccess", "open_registers"]

ALIGN = 64
"""Bytes to which a transfer over PCIe is rounded."""
LIBRARY = "libxrt_core.so.2"


class RegisterAccess(Protocol):
    """Reads and writes the registers of one kernel instance."""

    def read_register(self, offset: int) -> int:
        """A register's value."""

    def write_register(self, offset: int, value: int) -> None:
        """Write a register."""


class CoreLibrary:
    """Register access through XRT's C library: xclOpenContext, xclRegRead, xclRegWrite.

    Parameters
    ----------
    index : of the card. uuid : of the xclbin, 16 bytes. instance : its index among the IPs.
    library : the loaded library; None loads it.
    """

    def __init__(self, index: int, uuid: bytes, instance: int, library: Any = None) -> None:
        self._library = library if library is not None else ctypes.CDLL(LIBRARY)
        self._library.xclOpen.restype = ctypes.c_void_p
        self._instance = ctypes.c_uint32(instance)
        self._handle = ctypes.c_void_p(self._library.xclOpen(index, None, 0))
        exclusive = ctypes.c_bool(False)  # the argument is "shared"
        self._check(
            "xclOpenContext",
            self._library.xclOpenContext(self._handle, uuid, self._instance, exclusive),
        )

    def read_register(self, offset: int) -> int:
        value = ctypes.c_uint32()
        done = self._library.xclRegRead(
            self._handle, self._instance, ctypes.c_uint32(offset), ctypes.byref(value)
        )
        self._check("xclRegRead", done)
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        done = self._library.xclRegWrite(
            self._handle, self._instance, ctypes.c_uint32(offset), ctypes.c_uint32(value)
        )
        self._check("xclRegWrite", done)

    @staticmethod
    def _check(what: str, status: int) -> None:
        if status:
            raise DeviceError(f"XRT: {what} answers {status}")


def open_registers(xrt: Any, device: Any, uuid: Any, description: Any) -> RegisterAccess:
    """The registers of a kernel instance, by whatever way this XRT has.

    Parameters
    ----------
    xrt : the pyxrt module. device, uuid : pyxrt's. description : PYNQ's entry of the instance.
    """
    kernel, _, instance = description["cu_name"].partition(":")
    name = f"{kernel}:{{{instance}}}"
    if hasattr(xrt, "ip"):
        return cast(RegisterAccess, xrt.ip(device.handle, uuid, name))
    if hasattr(xrt.kernel, "read_register"):
        kernels = xrt.kernel(device.handle, uuid, name, xrt.kernel.exclusive)
        return cast(RegisterAccess, kernels)
    raw = bytes.fromhex(description["xclbin_uuid"])
    return CoreLibrary(device.index, raw, description["index"])


class _Memory:
    """One bank of a card."""

    def __init__(self, device: AlveoDevice, description: Any) -> None:
        self._device, self._bank = device, description["idx"]

    def allocate(self, shape: Any, dtype: Any, **_: Any) -> PynqBuffer:
        """A buffer in this bank."""
        xrt = self._device.xrt
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        whole = -(-size // ALIGN) * ALIGN
        bo = xrt.bo(self._device.handle, whole, xrt.bo.flags.normal, self._bank)
        return PynqBuffer(
            shape, dtype, bo=bo, device=self._device, buffer=bo.map(),
            device_address=bo.address(), coherent=False,
        )  # fmt: skip


class AlveoDevice(pynq.Device):  # type: ignore[misc]  # pynq is untyped
    """A card, by its number among those that XRT finds."""

    # Behind PYNQ's embedded (40, 50) and remote (100) devices, before its retired one (200).
    _probe_priority_ = 150

    @classmethod
    def _probe_(cls) -> list[AlveoDevice]:
        if pynq.ps.ON_TARGET:  # XRT of an embedded board: PYNQ's own device drives it
            return []
        try:
            import pyxrt
        except ImportError:
            return []
        found: list[AlveoDevice] = []
        try:
            for index in range(pyxrt.enumerate_devices()):
                found.append(cls(index))
        except RuntimeError:  # XRT's driver is not loaded
            pass
        return found

    def __init__(self, index: int) -> None:
        import pyxrt

        super().__init__(f"alveo{index}")
        self.xrt, self.index = pyxrt, index
        self.handle = pyxrt.device(index)
        self.name = str(self.handle.get_info(pyxrt.xrt_info_device.name))
        self.capabilities = {"REGISTER_RW": True}
        self.timestamp = ""
        self._uuid: Any = None
        self._registers: dict[int, RegisterAccess] = {}

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> XclBin:
        """PYNQ's parser over the xclbin."""
        return XclBin(bitfile_name)

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Program the card."""
        self._registers.clear()
        self._uuid = self.handle.load_xclbin(bitstream.bitfile_name)
        self.post_download(bitstream, parser)

    def gen_cache(self, bitstream: Any, parser: Any = None) -> None:
        """XRT keeps what is programmed; there is nothing to cache."""

    def open_context(self, description: Any) -> int:
        """Open a kernel instance for its registers; PYNQ calls this for each driver it binds."""
        if self._uuid is None:
            self._uuid = self.handle.get_xclbin_uuid()
        access = open_registers(self.xrt, self, self._uuid, description)
        self._registers[int(description["phys_addr"])] = access
        return int(description["cu_index"])

    def _find(self, address: int) -> tuple[RegisterAccess, int]:
        base = max((b for b in self._registers if b <= address), default=None)
        if base is None:
            raise DeviceError(f"{self.tag}: no kernel is open at address {address:#x}")
        return self._registers[base], address - base

    def read_registers(self, address: int, length: int) -> bytes:
        """Registers as bytes."""
        access, offset = self._find(address)
        words = [access.read_register(offset + at) for at in range(0, length, 4)]
        return np.array(words, "<u4").tobytes()[:length]

    def write_registers(self, address: int, data: bytes) -> None:
        """Write registers."""
        access, offset = self._find(address)
        for number, word in enumerate(np.frombuffer(bytes(data), "<u4")):
            access.write_register(offset + 4 * number, int(word))

    def get_memory(self, description: Any) -> _Memory:
        """A bank, from the overlay's `mem_dict`."""
        return _Memory(self, description)

    def flush(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Host to card. What shares a 64-byte block with the slice is kept as the card has it."""
        start, end = offset // ALIGN * ALIGN, -(-(offset + size) // ALIGN) * ALIGN
        if (start, end) != (offset, offset + size):
            wanted = bytes(bo.map()[offset : offset + size])
            self._sync(bo, "FROM", start, end)
            bo.map()[offset : offset + size] = wanted
        self._sync(bo, "TO", start, end)

    def invalidate(self, bo: Any, offset: int, pointer: int, size: int) -> None:
        """Card to host."""
        self._sync(bo, "FROM", offset // ALIGN * ALIGN, -(-(offset + size) // ALIGN) * ALIGN)

    def _sync(self, bo: Any, direction: str, start: int, end: int) -> None:
        way = getattr(self.xrt.xclBOSyncDirection, f"XCL_BO_SYNC_BO_{direction}_DEVICE")
        bo.sync(way, end - start, start)

    def power(self) -> float | None:
        """Watts that the card draws now, from XRT's electrical report."""
        report = json.loads(self.handle.get_info(self.xrt.xrt_info_device.electrical) or "{}")
        watts = report.get("power_consumption_watts")
        try:
            return float(watts)
        except (TypeError, ValueError):  # "N/A" on a card without a sensor
            return None
