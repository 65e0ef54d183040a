"""A board on the network that is not there: PYNQ's gRPC services over a simulated design."""

from __future__ import annotations

from concurrent import futures

import grpc
import numpy as np
from pynq.remote import (
    buffer_pb2,
    buffer_pb2_grpc,
    mmio_pb2,
    mmio_pb2_grpc,
    remote_device_pb2,
    remote_device_pb2_grpc,
)

from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["REGISTERS", "RemoteBoard"]

REGISTERS = 0xA000_0000
PLL = 45 << 8 | 1 << 16
"""What the clock registers of the processing system read at first: 750 MHz."""


class _Mmio(mmio_pb2_grpc.MmioServicer):
    def __init__(self, board: RemoteBoard) -> None:
        self._board = board

    def get_mmio(self, request, context):
        return mmio_pb2.GetMmioResponse(status=True, mmio_id=str(request.base_addr))

    def read(self, request, context):
        word = self._board.peek(int(request.mmio_id) + request.offset)
        return mmio_pb2.ReadResponse(status=True, data=word)

    def write(self, request, context):
        for at, word in enumerate(np.frombuffer(request.data, "<u4").tolist()):
            self._board.poke(int(request.mmio_id) + request.offset + 4 * at, word)
        return mmio_pb2.WriteResponse(status=True)


class _Buffers(buffer_pb2_grpc.RemoteBufferServicer):
    """Buffers in the processor's cache; flush and invalidate move them to and from memory."""

    def __init__(self, board: RemoteBoard) -> None:
        self._board = board
        self._cached: dict[str, bytearray] = {}
        self.moved = 0

    def _address(self, number: str) -> int:
        return int(number) * self._board.bus.config.channel_bytes + 0x1000

    def allocate(self, request, context):
        number = str(len(self._cached) % sum(self._board.bus.config.channels))
        self._cached[number] = bytearray(request.size)
        return buffer_pb2.AllocateResponse(buffer_id=number)

    def physical_address(self, request, context):
        return buffer_pb2.AddressResponse(address=self._address(request.buffer_id))

    def write(self, request_iterator, context):
        at = 0
        for request in request_iterator:
            self._cached[request.buffer_id][at : at + len(request.data)] = request.data
            at += len(request.data)
        self.moved += at
        return buffer_pb2.BufferWriteResponse()

    def read(self, request, context):
        self.moved += len(self._cached[request.buffer_id])
        yield buffer_pb2.BufferReadResponse(data=bytes(self._cached[request.buffer_id]))

    def flush(self, request, context):
        number = request.buffer_id
        self._board.bus.store(self._address(number), bytes(self._cached[number]))
        return buffer_pb2.FlushResponse()

    def invalidate(self, request, context):
        cached = self._cached[request.buffer_id]
        cached[:] = self._board.bus.fetch(self._address(request.buffer_id), len(cached))
        return buffer_pb2.InvalidateResponse()

    def freebuffer(self, request, context):
        self._cached.pop(request.buffer_id, None)
        return buffer_pb2.FreeBufferResponse()


class _Files(remote_device_pb2_grpc.RemoteDeviceServicer):
    def __init__(self) -> None:
        self.files: dict[str, bytes] = {
            "/proc/version": b"Linux version 6.6 (aarch64)",
            "/proc/device-tree/chosen/pynq_board": b"KV260\0",
            "/sys/class/fpga_manager/fpga0/state": b"operating",
            "/sys/class/fpga_manager/fpga0/flags": b"0",
        }

    def existsfile(self, request, context):
        return remote_device_pb2.ExistsFileResponse(exists=request.file_path in self.files)

    def readfile(self, request, context):
        yield remote_device_pb2.ReadFileResponse(data=self.files[request.file_path])

    def writefile(self, request_iterator, context):
        parts: dict[str, bytes] = {}
        for request in request_iterator:
            parts[request.file_path] = parts.get(request.file_path, b"") + request.data
        self.files.update(parts)
        return remote_device_pb2.WriteFileResponse()

    def set_bitstream_attrs(self, request, context):
        return remote_device_pb2.SetBitstreamAttrsResponse()


class RemoteBoard:
    """The server; `port` is where it listens on this machine."""

    def __init__(self, bus) -> None:
        self.bus, self.buffers, self.system = bus, _Buffers(self), _Files()
        self._registers: dict[int, int] = {}
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        mmio_pb2_grpc.add_MmioServicer_to_server(_Mmio(self), self._server)
        buffer_pb2_grpc.add_RemoteBufferServicer_to_server(self.buffers, self._server)
        remote_device_pb2_grpc.add_RemoteDeviceServicer_to_server(self.system, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def peek(self, address: int) -> int:
        if REGISTERS <= address < REGISTERS + (1 << ADDRESS_BITS):
            return self.bus.read(address - REGISTERS)
        if address < self.bus.memory.size:
            return int.from_bytes(self.bus.fetch(address, 4), "little")
        return self._registers.get(address, PLL)

    def poke(self, address: int, word: int) -> None:
        if REGISTERS <= address < REGISTERS + (1 << ADDRESS_BITS):
            self.bus.write(address - REGISTERS, word)
        elif address < self.bus.memory.size:
            self.bus.store(address, word.to_bytes(4, "little"))
        else:
            self._registers[address] = word

    def stop(self) -> None:
        self._server.stop(None)
