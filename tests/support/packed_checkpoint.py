"""Writes quantised Hugging Face folders, packed bit by bit as the formats' documents describe.

Nothing of the package's own unpacking is used: codes are put into words with Python integers, from
transformers' and the quantisers' own description of their layouts. `weights` gives what the written
files stand for, computed from the unpacked codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

__all__ = ["QuantisedFolder", "quantise_folder"]

AWQ_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass
class QuantisedFolder:
    """What was written: `weights` float32 [out, in] by module, `codes` uint8, `zeros`, `scales`."""

    path: Path
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    codes: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    zeros: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    scales: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def pack_line(values: list[int], bits: int) -> list[int]:
    """Values into as many 32-bit words as they need, lowest bit first, as signed integers."""
    total = 0
    for place, value in enumerate(values):
        total |= value << (bits * place)
    count = -(-len(values) * bits // 32)
    words = [(total >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def pack_rows(matrix: NDArray[Any], bits: int) -> torch.Tensor:
    """[n, m] packed along its last axis, int32."""
    return torch.tensor([pack_line(row, bits) for row in matrix.tolist()], dtype=torch.int32)


def pack_awq(matrix: NDArray[Any]) -> torch.Tensor:
    """[n, 8 m] packed along its last axis in AWQ's order."""
    order = [8 * block + place for block in range(matrix.shape[1] // 8) for place in AWQ_NIBBLES]
    return pack_rows(matrix[:, order], 4)


def _group_codes(
    rng: np.random.Generator, weight: NDArray[np.float32], bits: int, places: NDArray[np.int64],
    symmetric: bool, kind: Any,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:  # fmt: skip
    """Codes [out, in], zeros and scales [out, groups] of a plain rounding."""
    groups, top = int(places.max()) + 1, (1 << bits) - 1
    codes = np.zeros(weight.shape, np.uint8)
    zeros = np.zeros((len(weight), groups), np.int64)
    scales = np.zeros((len(weight), groups), np.float32)
    for group in range(groups):
        part = weight[:, places == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            scale = 2 * np.maximum(-low, high) / (top - (bits == 8))
            zero = np.full(len(part), 1 << (bits - 1))
        else:
            scale = (high - low) / top
            zero = np.rint(-low / np.maximum(scale, 1e-9)).clip(0, top).astype(int)
        scale = np.maximum(scale, 1e-4).astype(kind).astype(np.float32)
        found = np.rint(part / scale[:, None]) + zero[:, None]
        codes[:, places == group] = found.clip(bits == 8 and symmetric, top).astype(np.uint8)
        zeros[:, group], scales[:, group] = zero, scale
    del rng
    return codes, zeros, scales


def quantise_folder(
    folder: Path, method: str, bits: int = 4, group: int = 32, *, symmetric: bool = False,
    act_order: bool = False, version: str = "", skip: tuple[str, ...] = ("lm_head",),
    scale_type: torch.dtype = torch.float16, seed: int = 0,
) -> QuantisedFolder:  # fmt: skip
    """Replace the linear layers of a transformers folder by packed ones, in place.

    Parameters
    ----------
    method : "gptq", "awq" or "compressed-tensors". group : -1 for whole rows.
    act_order : columns belong to groups in a random order. version : checkpoint_format of gptq,
        version of awq, format of compressed-tensors. skip : modules left in float.
    """
    rng = np.random.default_rng(seed)
    tensors = load_file(folder / "model.safetensors")
    made = QuantisedFolder(folder)
    kind = np.float16 if scale_type == torch.float16 else np.float32
    out: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        linear = tensor.dim() == 2 and module.rsplit(".", 1)[-1].startswith(
            ("q_", "k_", "v_", "o_", "out_", "gate_", "up_", "down_", "fc", "lm_head", "c_")
        )
        if not linear or module in skip:
            out[name] = tensor
            continue
        weight = tensor.float().numpy()
        if module.rsplit(".", 1)[-1].startswith("c_"):  # GPT-2 keeps [in, out]
            weight = weight.T
        per = weight.shape[1] if group < 0 else group
        places = np.arange(weight.shape[1]) // per
        places = rng.permutation(places) if act_order else places
        codes, zeros, scales = _group_codes(rng, weight, bits, places, symmetric, kind)
        if scale_type == torch.bfloat16:
            scales = torch.from_numpy(scales).bfloat16().float().numpy()
        made.codes[module], made.zeros[module], made.scales[module] = codes, zeros, scales
        levels = codes.astype(np.float32) - zeros[:, places].astype(np.float32)
        made.weights[module] = levels * scales[:, places]
        parts = _PACKERS[method](codes, zeros, scales, places, bits, version, scale_type, symmetric)
        out |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(out, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = _described(method, bits, group, symmetric, act_order, version)
    (folder / "config.json").write_text(json.dumps(config))
    return made


def _described(
    method: str, bits: int, group: int, symmetric: bool, act_order: bool, version: str
) -> dict[str, Any]:
    if method == "gptq":
        return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order,
                "sym": symmetric, "checkpoint_format": version or "gptq"}  # fmt: skip
    if method == "awq":
        return {"quant_method": "awq", "bits": bits, "group_size": group, "zero_point": True,
                "version": version or "gemm"}  # fmt: skip
    strategy = "channel" if group < 0 else "group"
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy,
               "group_size": None if group < 0 else group,
               "actorder": "group" if act_order else None}  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": version or "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights,
                                      "input_activations": None, "output_activations": None}},
        "ignore": ["lm_head"], "quantization_status": "compressed",
    }  # fmt: skip


def _gptq(codes, zeros, scales, places, bits, version, kind, symmetric):  # type: ignore[no-untyped-def]
    stored = zeros if version == "gptq_v2" else (zeros - 1) % (1 << bits)
    return {
        "qweight": pack_rows(codes, bits).T, "qzeros": pack_rows(stored.T, bits),
        "scales": torch.from_numpy(scales).to(kind).T,
        "g_idx": torch.from_numpy(places).to(torch.int32),
    }  # fmt: skip


def _awq(codes, zeros, scales, places, bits, version, kind, symmetric):  # type: ignore[no-untyped-def]
    if version == "gemv":
        return {
            "qweight": pack_rows(codes, 4), "qzeros": pack_rows(zeros, 4),
            "scales": torch.from_numpy(scales).to(kind),
        }  # fmt: skip
    return {
        "qweight": pack_awq(codes.T), "qzeros": pack_awq(zeros.T),
        "scales": torch.from_numpy(scales).to(kind).T,
    }  # fmt: skip


def _compressed(codes, zeros, scales, places, bits, version, kind, symmetric):  # type: ignore[no-untyped-def]
    parts = {"weight_scale": torch.from_numpy(scales).to(kind)}
    if version == "int-quantized":
        parts["weight"] = torch.from_numpy((codes.astype(np.int16) - 128).astype(np.int8))
        if not symmetric:
            parts["weight_zero_point"] = torch.from_numpy((zeros - 128).astype(np.int8))
        return parts
    parts["weight_packed"] = pack_rows(codes, bits)
    parts["weight_shape"] = torch.tensor(codes.shape, dtype=torch.int64)
    if not symmetric:
        parts["weight_zero_point"] = pack_rows(zeros.T, bits).T
    if not np.array_equal(
        places, np.arange(len(places)) // max(1, codes.shape[1] // scales.shape[1])
    ):
        parts["weight_g_idx"] = torch.from_numpy(places).to(torch.int32)
    return parts


_PACKERS = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
