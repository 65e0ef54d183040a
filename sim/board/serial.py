"""The far end of a serial line in Python: requests become accesses to a simulated design."""

from __future__ import annotations

from flightllm.sim.board.device import Bus
from flightllm.spec.serial import BEAT, NUMBERS, Command, check_byte

__all__ = ["SimulatedLine"]


class SimulatedLine:
    """A line with a board at its end; see `flightllm.runtime.serial_link.Line`.

    Parameters
    ----------
    bus : the board.
    """

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._request, self._reply = b"", b""

    def write(self, data: bytes) -> None:
        """Take bytes; requests that are complete are served."""
        self._request += data
        while self._serve():
            pass

    def read(self, size: int) -> bytes:
        """Bytes of the replies."""
        out, self._reply = self._reply[:size], self._reply[size:]
        return out

    def clear(self) -> None:
        """Forget half a request, and replies that nobody read."""
        self._request = self._reply = b""

    def close(self) -> None:
        """End the simulation."""
        self.bus.close()

    def _serve(self) -> bool:
        """Serve one request, if there is a whole one."""
        if not self._request:
            return False
        if self._request[0] not in {command.value for command in Command}:
            self._request = self._request[1:]
            return True
        command = Command(self._request[0])
        numbers, at = [], 1
        for size in NUMBERS[command]:
            numbers.append(int.from_bytes(self._request[at : at + size], "little"))
            at += size
        end = at + (BEAT * (numbers[1] + 1) if command is Command.MEMORY_WRITE else 0)
        if len(self._request) < end:
            return False
        whole, self._request = self._request[:end], self._request[end:]
        reply = self._answer(command, numbers, whole[at:])
        self._reply += reply + bytes([check_byte((whole, reply))])
        return True

    def _answer(self, command: Command, numbers: list[int], data: bytes) -> bytes:
        if command is Command.REGISTER_READ:
            return self.bus.read(numbers[0]).to_bytes(4, "little")
        if command is Command.REGISTER_WRITE:
            self.bus.write(*numbers)
        elif command is Command.MEMORY_READ:
            return self.bus.fetch(numbers[0], BEAT * (numbers[1] + 1))
        else:
            self.bus.store(numbers[0], data)
        return b""
