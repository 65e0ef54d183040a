"""A stand-in for XRT's Python module, made from its published stubs, over a simulated design.

`make(bus, xclbin, registers=...)` gives a module whose card is `bus`. `registers` is how this XRT
reaches registers: "ip", "kernel" (before 2.15) or "library".
"""

from __future__ import annotations

import ctypes
import enum
import types
from pathlib import Path
from typing import Any

__all__ = ["FakeCore", "make"]


class xclBOSyncDirection(enum.IntEnum):
    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class xrt_info_device(enum.IntEnum):
    name = 0
    electrical = 1


class FakeCore:
    """libxrt_core's functions, over a bus."""

    def __init__(self, get_bus, uuid: bytes) -> None:
        self._get_bus, self._uuid = get_bus, uuid
        self.xclOpen = lambda index, log, level: 4096 + index
        self.contexts: list[tuple[int, bool]] = []

    def xclOpenContext(self, handle, uuid, instance, shared) -> int:
        if bytes(uuid) != self._uuid:
            return -22
        self.contexts.append((instance.value, shared.value))
        return 0

    def xclRegRead(self, handle, instance, offset, pointer) -> int:
        value = ctypes.c_uint32(self._get_bus().read(offset.value))
        ctypes.memmove(pointer, ctypes.byref(value), 4)
        return 0

    def xclRegWrite(self, handle, instance, offset, value) -> int:
        self._get_bus().write(offset.value, value.value)
        return 0


def make(make_bus, registers: str, base_of, electrical: str = "") -> Any:
    """The module; `base_of(bank)` is the address of a bank's buffers."""
    module = types.ModuleType("pyxrt")
    state: dict[str, Any] = {"bus": None, "loaded": None, "opened": []}

    class device:
        def __init__(self, index: int) -> None:
            self.index = index

        def get_info(self, key: xrt_info_device) -> str:
            return {"name": "xilinx_u280_gen3x16_xdma_base_1", "electrical": electrical}[key.name]

        def load_xclbin(self, path: str) -> str:
            state["bus"], state["loaded"] = make_bus(Path(path).read_bytes()), path
            return "uuid"

        def get_xclbin_uuid(self) -> str:
            return "uuid"

    class bo:
        class flags(enum.IntEnum):
            normal = 0
            cacheable = 1

        def __init__(self, device: device, size: int, flags: Any, group: int) -> None:
            assert isinstance(size, int) and size % 64 == 0
            self._data, self._base = bytearray(size), base_of(group)

        def map(self) -> memoryview:
            return memoryview(self._data)

        def address(self) -> int:
            return self._base

        def size(self) -> int:
            return len(self._data)

        def sync(self, way: xclBOSyncDirection, size: int, offset: int) -> None:
            if size % 64 or offset % 64:
                raise RuntimeError("DMA of an unaligned range")
            part = slice(offset, offset + size)
            if way is xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE:
                state["bus"].store(self._base + offset, bytes(self._data[part]))
            else:
                self._data[part] = state["bus"].fetch(self._base + offset, size)

    class _Registers:
        def __init__(self, device: Any, uuid: str, name: str, mode: Any = None) -> None:
            state["opened"].append((uuid, name, mode))

        def read_register(self, offset: int) -> int:
            return state["bus"].read(offset)

        def write_register(self, offset: int, value: int) -> None:
            state["bus"].write(offset, value)

    class kernel:
        exclusive = "exclusive"

        def __init__(self, *_: Any) -> None:
            raise AssertionError("a kernel of this XRT has no registers")

    module.device, module.bo = device, bo
    module.kernel = type("kernel", (_Registers,), {"exclusive": "exclusive"})
    if registers != "kernel":
        module.kernel = kernel
    if registers == "ip":
        module.ip = _Registers
    module.enumerate_devices = lambda: 1
    module.xclBOSyncDirection, module.xrt_info_device = xclBOSyncDirection, xrt_info_device
    module.state = state
    return module
