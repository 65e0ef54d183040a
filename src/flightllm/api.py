"""The Python interface: compile a model, run a program, evaluate a quantisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flightllm.compilation import LENGTHS, Compilation, Progress, build, compile, is_program
from flightllm.executors import Tracer, Watch, open_device
from flightllm.hardware import Board, VerilogFolder, as_config, write_verilog
from flightllm.prompts import prompt_ids, tokenizer_beside
from flightllm.runtime.generate import Generation, TextStream
from flightllm.runtime.sampling import Sampler
from flightllm.runtime.session import Session
from flightllm.spec.errors import InputError
from flightllm.spec.image import Program, load_program

if TYPE_CHECKING:
    from flightllm.evaluation import Evaluation
    from flightllm.models.tokenizer import Tokenizer

__all__ = [
    "LENGTHS", "Board", "Compilation", "LoadedProgram", "Progress", "VerilogFolder", "as_config",
    "build", "compile", "evaluate", "is_program", "load", "prompt_ids", "write_verilog",
]  # fmt: skip

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


class LoadedProgram:
    """A program on a device, ready to generate text; close it, or use it in a `with` statement.

    Members
    -------
    program, session : see `flightllm.spec.image` and `flightllm.runtime.session`.
    tokenizer : of the program's model, or None; without it prompts are token ids.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer | None) -> None:
        self.session, self.program, self.tokenizer = session, session.program, tokenizer

    def stream(
        self,
        prompt: Prompt,
        tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        steps: int = 1,
    ) -> TextStream:
        """As `generate`; iterate over it for pieces of text, then ask for its `result()`."""
        sampler = Sampler(temperature, top_p, seed)
        return TextStream(self.session, self.tokenizer, self._ids(prompt), tokens, sampler, steps)

    def generate(
        self,
        prompt: Prompt,
        tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        steps: int = 1,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """Continue a prompt.

        Parameters
        ----------
        prompt : text; token ids; or messages, each with "role" and "content", which go through
            the model's chat template.
        tokens : how many to generate at most.
        temperature : 0 takes the likeliest token, which the device finds itself.
        top_p, seed : nucleus and random seed of the sampling.
        steps : tokens that the device decodes on its own before the host looks again.
        on_text : gets the text piece by piece.

        Raises
        ------
        InputError
            For a prompt longer than the program's maximum length, or a value out of range.
        """
        stream = self.stream(prompt, tokens, temperature, top_p, seed, steps)
        for piece in stream:
            if on_text is not None:
                on_text(piece)
        return stream.result()

    @property
    def build_seconds(self) -> float:
        """What building the executor's hardware took; 0 where it has none to build."""
        return float(getattr(self.session.device, "build_seconds", 0.0))

    def _ids(self, prompt: Prompt) -> str | list[int]:
        if isinstance(prompt, str):
            return prompt
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if not messages:
            return [int(item) for item in prompt if not isinstance(item, Mapping)]
        if self.tokenizer is None:
            raise InputError(f"{self.program.model.name}: there is no tokenizer, so it cannot chat")
        return self.tokenizer.encode(self.tokenizer.chat(messages), bos=False)

    def close(self) -> None:
        """Give the device back."""
        self.session.device.close()

    def __enter__(self) -> LoadedProgram:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    program: str | Path | Program,
    on: str = "functional",
    *,
    board: Board | None = None,
    tokenizer: Tokenizer | None = None,
    trace: Tracer | None = None,
    device: str | None = None,
    bitstream: str | Path | None = None,
    wave: Path | None = None,
    wave_from: int = 0,
    progress: Callable[[str], None] | None = None,
) -> LoadedProgram:
    """Put a program on an executor.

    Parameters
    ----------
    program : a program folder, or what `compile` returned.
    on : the executor: "functional", "cycle", "rtl" or "board"; "functional:SEED" runs its units in
        a random legal order, "cycle:N" and "rtl:SETTINGS" change the memory.
    board : the hardware that the device has; left out, what the program was made for.
    tokenizer : in place of the one in the program's folder.
    trace : called with a `flightllm.spec.trace.TraceRecord` for each executed instruction.
    device, bitstream : of a board; see `flightllm.board_devices.open_board`.
    wave : file for a waveform, from cycle `wave_from` on; "rtl" only.
    progress : told what "rtl" is doing while it builds the hardware, which is kept.

    Raises
    ------
    InputError
        When the folder is no program, is altered, has no weights, or is for another board.
    DeviceError
        When a board is in use, is missing, or does not do what it should.
    """
    found = program if isinstance(program, Program) else load_program(Path(program))
    if tokenizer is None and found.folder is not None:
        tokenizer = tokenizer_beside(found.folder)
    opened = open_device(
        on, found.config if board is None else as_config(board),
        Watch(trace, wave, wave_from, progress), device=device,
        bitstream=None if bitstream is None else Path(bitstream),
    )  # fmt: skip
    try:
        return LoadedProgram(Session(opened, found), tokenizer)
    except BaseException:
        opened.close()
        raise


def evaluate(model: str | Path, text: str, board: Board = "tiny", **options: Any) -> Evaluation:
    """Perplexity of a model on a text; see `flightllm.evaluation.evaluate`."""
    from flightllm import evaluation

    return evaluation.evaluate(model, text, board, **options)
