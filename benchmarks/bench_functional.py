"""Decoding on the functional simulator against torch float32, both in this run, on this machine.

1. A TinyLlama-1.1B-shaped program with random 4-bit weights (group 128) on board u280, against
   torch's float32 forward pass of the same shape with a KV cache. The bar: at least 1/2 of torch's
   speed, in at most 8 GiB.
2. stories260k (where FLIGHTLLM_TEST_DATA names it), tokens a second; the bar: 30.

Each side runs in a process of its own, in turn, twice; the better of the two counts for each.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TOKENS = 8
PROMPT = 4


def random_tinyllama():
    """A QuantModel with TinyLlama-1.1B's sizes and random levels."""
    from flightllm.models import zoo
    from flightllm.models.quantized import QuantLayer, QuantLinear, QuantModel
    from flightllm.models.rope import rope_tables
    from flightllm.spec.quant import QuantTensor

    config = zoo.shape("tinyllama-1.1b")
    rng = np.random.default_rng(0)

    def linear(rows: int, columns: int, bits: int = 4) -> QuantLinear:
        raw = np.frombuffer(rng.bytes(rows * columns), np.int8).reshape(rows, columns)
        levels = raw >> 4 if bits == 4 else np.maximum(raw, -127)
        size = columns**-0.5 / (4.6 if bits == 4 else 73.0)
        scales = np.full((rows, -(-columns // 128)), size, np.float16)
        return QuantLinear(QuantTensor(levels, scales, bits, 128))

    dim, hidden, kv = config.dim, config.heads * config.head_dim, config.kv_heads * config.head_dim
    gain = np.ones(dim, np.float32)
    layers = tuple(
        QuantLayer(
            gain, linear(hidden, dim), linear(kv, dim), linear(kv, dim), linear(dim, hidden), gain,
            linear(config.ffn_dim, dim), linear(config.ffn_dim, dim), linear(dim, config.ffn_dim),
        )
        for _ in range(config.layers)
    )  # fmt: skip
    cos, sin = rope_tables(config, config.max_length)
    embed = rng.standard_normal((config.vocab, dim), np.float32).astype(np.float16)
    return QuantModel(
        dim, config.heads, config.kv_heads, config.head_dim, config.ffn_dim, config.vocab,
        config.max_length, config.norm_eps, "silu", 8, None, embed, None, cos, sin, layers, gain,
        linear(config.vocab, dim, 8),
    )  # fmt: skip


def compile_tinyllama(folder: Path) -> dict[str, float]:
    """Write the program folder (not timed: packing is the compiler's work)."""
    from flightllm.compiler.build import build_program
    from flightllm.spec.config import load_config
    from flightllm.spec.image import save_program

    program = build_program(random_tinyllama(), load_config("u280"), "tinyllama", max_length=512)
    save_program(program, folder)
    return {}


def simulate(folder: Path) -> dict[str, float]:
    """Seconds a decoded token after the first, and the process' peak memory."""
    from flightllm.runtime.session import Session
    from flightllm.sim.functional import FunctionalDevice
    from flightllm.spec.image import load_program

    program = load_program(folder, verify=False)
    session = Session(FunctionalDevice(program.config), program)
    session.prefill(list(range(1, PROMPT + 1)))
    session.decode(5)
    begin = time.perf_counter()
    for token in range(TOKENS):
        session.decode(token)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": (time.perf_counter() - begin) / TOKENS, "peak_gib": peak}


def torch_float32(_: Path) -> dict[str, float]:
    """The same for torch: our float reference, which is plain torch matrix products."""
    import torch

    from flightllm.models import zoo
    from flightllm.models.config import tensor_shapes
    from flightllm.models.reference import FloatModel, KVCache

    config = zoo.shape("tinyllama-1.1b")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.empty(shape).uniform_(-0.03, 0.03, generator=generator)
        for name, shape in tensor_shapes(config).items()
    }
    model, cache = FloatModel(config, tensors), KVCache(config, 1)
    with torch.no_grad():
        model.forward(torch.arange(1, PROMPT + 1)[None], cache, 0)
        model.forward(torch.tensor([[5]]), cache, PROMPT)
        begin = time.perf_counter()
        for token in range(TOKENS):
            model.forward(torch.tensor([[token]]), cache, PROMPT + 1 + token)
    return {"seconds": (time.perf_counter() - begin) / TOKENS}


def stories(folder: Path) -> dict[str, float]:
    """stories260k in w8g32, tokens a second over 100 decoded tokens."""
    import flightllm

    data = Path(os.environ["FLIGHTLLM_TEST_DATA"]) / "models" / "stories260k"
    flightllm.compile(str(data), weights="w8g32", calibrate="none", out=folder)
    with flightllm.load(folder) as model:
        model.generate("Once upon a time", tokens=4)
        result = model.generate("Once upon a time", tokens=100)
    return {"seconds": result.seconds_per_token}


PARTS = {f.__name__: f for f in (compile_tinyllama, simulate, torch_float32, stories)}


def measure(part: str, folder: Path) -> dict[str, float]:
    """Run one part in a process of its own."""
    command = [sys.executable, __file__, part, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the comparison; 1 when a bar is missed."""
    missed = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "tinyllama"
        measure("compile_tinyllama", folder)
        runs = [(measure("simulate", folder), measure("torch_float32", folder)) for _ in range(2)]
        ours = min(run[0]["seconds"] for run in runs)
        theirs = min(run[1]["seconds"] for run in runs)
        peak = max(run[0]["peak_gib"] for run in runs)
        ratio = theirs / ours
        print(f"TinyLlama-1.1B w4g128 on functional: {ours:.3f} s a token, peak {peak:.2f} GiB")
        print(f"TinyLlama-1.1B float32 in torch:     {theirs:.3f} s a token")
        print(f"ratio (ours / torch speed): {ratio:.2f} (bar 0.5)")
        missed += ratio < 0.5 or peak > 8
        if os.environ.get("FLIGHTLLM_TEST_DATA"):
            speed = 1 / measure("stories", Path(scratch) / "stories")["seconds"]
            print(f"stories260k w8g32 on functional: {speed:.1f} token/s (bar 30)")
            missed += speed < 30
    return int(missed > 0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(PARTS[sys.argv[1]](Path(sys.argv[2]))))
    else:
        sys.exit(main())
