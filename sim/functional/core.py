"""The state that a core's units share: memory, buffers, weight FIFO and what tracing notes down."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flightllm.sim.functional.matrices import MatrixCache, Stream
from flightllm.sim.functional.memory import CoreMemory
from flightllm.spec.errors import VerifyError
from flightllm.spec.image import Program

__all__ = ["Buffer", "CoreState"]

Item = TypeVar("Item", bound=np.generic)


class Buffer(Generic[Item]):
    """The A buffer (int8) or the F buffer (float32): strided views, checked for their bounds.

    Parameters
    ----------
    name : "A" or "F". data : its elements.
    """

    __slots__ = ("data", "name", "_dtype", "_item", "_size")

    def __init__(self, name: str, data: NDArray[Item]) -> None:
        self.name = name
        self.data = data
        self._dtype = data.dtype
        self._item = data.itemsize
        self._size = len(data)

    def view(self, at: int, *axes: tuple[int, int]) -> NDArray[Item]:
        """The elements at + i*stride + j*stride2 + ..., as an array of the axes' counts.

        Parameters
        ----------
        axes : (count, stride) of each axis, from the outermost.

        Raises
        ------
        VerifyError
            When a count is negative or an element lies outside the buffer.
        """
        low = high = at
        for count, stride in axes:
            if count < 1:
                return self._nothing(at, axes)
            if stride >= 0:
                high += (count - 1) * stride
            else:
                low += (count - 1) * stride
        if low < 0 or high >= self._size:
            raise VerifyError(
                f"{self.name}: words {low} to {high} are not inside the buffer of {self._size}"
            )
        item = self._item
        return np.ndarray(
            [count for count, _ in axes], self._dtype, self.data, at * item,
            [stride * item for _, stride in axes],
        )  # fmt: skip

    def _nothing(self, at: int, axes: tuple[tuple[int, int], ...]) -> NDArray[Item]:
        """A view without elements, as a core has whose slice of a vector is empty."""
        counts = [count for count, _ in axes]
        if min(counts) < 0:
            raise VerifyError(f"{self.name} at {at}: a count of {min(counts)} is negative")
        return np.empty(counts, self._dtype)


class CoreState:
    """One core.

    Members
    -------
    number : of the core. channels : its memory channels. memory : what they hold.
    f, a : the float32 and the INT8 buffer. fifo : matrices on their way from LD to MM and MV.
    waiting : bytes of them, each in the channel that has most. prefetch : what the FIFO of a
        channel holds.
    matrices : decoded read-only matrices. params : parameter words.
    notes : (name, array) of everything the current instruction wrote; None when nobody traces.
    """

    def __init__(self, program: Program, number: int, cache_bytes: int) -> None:
        config = program.config
        self.number = number
        self.channels = config.channels[number]
        self.mv_vectors = config.mv_vectors
        self.memory = CoreMemory(program, number)
        self.f: Buffer[np.float32] = Buffer("F", np.zeros(config.float_words, np.float32))
        self.a: Buffer[np.int8] = Buffer("A", np.zeros(config.act_bytes, np.int8))
        self.words: Buffer[np.int32] = Buffer("F", self.f.data.view(np.int32))
        self.params = program.cores[number].params
        self.fifo: deque[Stream] = deque()
        self.waiting = 0
        self.prefetch = config.prefetch_bytes
        self.matrices = MatrixCache(self.channels, cache_bytes)
        self.notes: list[tuple[str, NDArray[np.generic]]] | None = None

    def push(self, stream: Stream) -> None:
        """Put a matrix into the weight FIFO."""
        self.fifo.append(stream)
        self.waiting += stream.size

    def pop(self) -> Stream:
        """Take the first matrix from the weight FIFO."""
        stream = self.fifo.popleft()
        self.waiting -= stream.size
        return stream

    def fill(self, rng: np.random.Generator) -> None:
        """Put arbitrary bits into the buffers: a program must not depend on what was there."""
        self.f.data.view(np.uint8)[:] = rng.integers(0, 256, self.f.data.nbytes, np.uint8)
        self.a.data[:] = rng.integers(-128, 128, len(self.a.data), np.int8)

    def note(self, name: str, array: NDArray[np.generic]) -> None:
        """Tell a tracer that `array` was written to "F", "A" or "memory"."""
        if self.notes is not None:
            self.notes.append((name, array))
