"""Ways to spoil an archive of torch.export: its zip, its program, its index, what is pickled."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile import Spoiler
from hostile_spoilers import endless_json, extreme, of_bytes, payload, pick, spoil_json, up_to
from torch_export import rewritten

__all__ = ["EXPORT"]

Random = np.random.Generator
_FILE = "m.pt2"
_PROGRAM, _INDEX = "models/model.json", "data/weights/model_weights_config.json"


def _members(change: Callable[[dict[str, bytes], Random], None]) -> Spoiler:
    def spoil(folder: Path, random: Random) -> None:
        rewritten(folder / _FILE, folder / "new.pt2", lambda members: change(members, random))
        (folder / "new.pt2").replace(folder / _FILE)

    return spoil


def _json(name: str, change: Callable[[Any, Random], Any]) -> Spoiler:
    """A spoiler of one JSON member; `change` may alter the object or give another."""

    def edit(members: dict[str, bytes], random: Random) -> None:
        data = json.loads(members[name])
        for _ in range(int(random.integers(1, 4))):
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # it is spoilt already
                made = change(data, random)
                data = data if made is None else made
        members[name] = json.dumps(data).encode()

    return _members(edit)


def _graph(data: Any) -> Any:
    return data["graph_module"]["graph"]


def _any_place(data: Any, random: Random) -> Any:
    """Anywhere: as it stands, or in one part of the graph."""
    kind = int(random.integers(4))
    if kind == 0:
        return spoil_json(data, random)
    part = ("nodes", "tensor_values", "inputs")[kind - 1]
    _graph(data)[part] = spoil_json(_graph(data)[part], random)
    return None


def _node(data: Any, random: Random) -> None:
    """One node's record."""
    nodes = _graph(data)["nodes"]
    place = int(random.integers(len(nodes)))
    nodes[place] = spoil_json(nodes[place], random)


def _arguments(data: Any, random: Random) -> None:
    """A number, list or text among a node's arguments."""
    node = pick(random, [node for node in _graph(data)["nodes"] if node["inputs"]])
    argument = pick(random, node["inputs"])
    kind = pick(random, ["as_int", "as_ints", "as_float", "as_bool", "as_none", "as_string",
                         "as_sym_int", "as_sym_ints", "as_tensor", "as_tensors"])  # fmt: skip
    value = extreme(random)
    argument["arg"] = {
        kind: pick(random, [value, [value], [value] * 9, {"as_int": value}, {"name": "x"}])
    }


def _targets(data: Any, random: Random) -> None:
    """Any known operator in place of another, or one that would run something."""
    from flightllm.models.aten_ops_nn import ATEN

    names = [*sorted(ATEN), "os.system", "builtins.exec", "_operator.pow", "math.factorial"]
    pick(random, _graph(data)["nodes"])["target"] = f"torch.ops.{pick(random, names)}"


def _cycle(data: Any, random: Random) -> None:
    """A node that reads what a later one makes; a graph inside itself."""
    nodes = _graph(data)["nodes"]
    place = int(random.integers(len(nodes)))
    readers = [a for a in nodes[place]["inputs"] if "as_tensor" in a["arg"]]
    later = pick(random, nodes[place:])["outputs"]
    if readers and later and "as_tensor" in later[0]:
        pick(random, readers)["arg"] = later[0]
    elif random.random() < 0.5:
        nodes.append(nodes[place])


def _nested(data: Any, random: Random) -> None:
    """Parts of a program in parts of a program, many deep or many side by side."""
    graph: Any = {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}
    width, depth = pick(random, [(1, 40), (2, 10)])
    for _ in range(int(random.integers(1, depth))):
        inner = {"as_graph": {"name": "g", "graph": graph}}
        node = {"target": "torch.ops.higher_order.wrap_with_set_grad_enabled", "outputs": [],
                "inputs": [{"name": "", "arg": inner}]}  # fmt: skip
        graph = {**graph, "nodes": [node] * width}
    _graph(data)["nodes"] += graph["nodes"]


def _metas(data: Any) -> list[Any]:
    return [entry["tensor_meta"] for entry in data["config"].values()]


def _shapes(data: Any, random: Random) -> None:
    meta = pick(random, _metas(data))
    meta["sizes"][int(random.integers(len(meta["sizes"])))] = {"as_int": extreme(random)}
    if random.random() < 0.3:
        meta["sizes"] = [{"as_int": 10**9}] * int(random.integers(0, 80))
        meta["strides"] = [{"as_int": 0}] * len(meta["sizes"])


def _offsets(data: Any, random: Random) -> None:
    meta = pick(random, _metas(data))
    value = {"as_int": extreme(random)}
    if random.random() < 0.5:
        meta["storage_offset"] = value
    else:
        meta["strides"][int(random.integers(len(meta["strides"])))] = value
    meta["dtype"] = pick(random, [meta["dtype"], int(random.integers(-2, 40))])


def _paths(data: Any, random: Random) -> None:
    entry = pick(random, list(data["config"].values()))
    entry["path_name"] = pick(random, ["../../models/model.json", "/etc/passwd", "", "weight_1", 7])


def _many(members: dict[str, bytes], random: Random) -> None:
    """An index of very many tensors, or a program of very many nodes."""
    name, key = pick(random, [(_INDEX, "config"), (_PROGRAM, "nodes")])
    data = json.loads(members[name])
    count = up_to(random, 16)
    if key == "config":
        one = pick(random, list(data["config"].values()))
        data["config"] |= {f"t{i}": one for i in range(count)}
    else:
        nodes = _graph(data)["nodes"]
        nodes += [pick(random, nodes)] * (count >> 3)
    members[name] = json.dumps(data).encode()


def _pickled(members: dict[str, bytes], random: Random) -> None:
    """Pickles that would run something: as weights, constants, sample inputs, extra members."""
    buffer = io.BytesIO()
    torch.save(payload(random), buffer)
    name = pick(random, ["data/weights/weight_0", "data/constants/tensor_0", "model.pt",
                         "data/sample_inputs/model.pt", "data/constants/custom_obj_0"])  # fmt: skip
    members[name] = buffer.getvalue()
    data = json.loads(members[_INDEX])
    entry = data["config"][pick(random, list(data["config"]))]
    entry.update(pick(random, [{"use_pickle": True}, {"tensor_meta": None}, {}]))
    entry["path_name"] = pick(random, [entry["path_name"], "weight_0"])
    members[_INDEX] = json.dumps(data).encode()


def _deep(members: dict[str, bytes], random: Random) -> None:
    members[pick(random, [_PROGRAM, _INDEX])] = endless_json(random)


def _zip(folder: Path, random: Random) -> None:
    """The zip's directory: offsets, sizes and counts at their limits; compressed members."""
    path = folder / _FILE
    if random.random() < 0.3:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                bomb = name.endswith("model.json") and random.random() < 0.5
                file.writestr(name, b" " * (1 << 24) if bomb else data)
        return
    data = bytearray(path.read_bytes())
    at = pick(random, [found.start() for found in re.finditer(rb"PK\x01\x02", data[:-46])])
    field, kind = pick(
        random, [(10, "<H"), (20, "<I"), (24, "<I"), (28, "<H"), (30, "<H"), (42, "<I")]
    )
    mask = (1 << (16 if kind == "<H" else 32)) - 1
    struct.pack_into(kind, data, at + field, extreme(random) & mask)
    path.write_bytes(data)


EXPORT: dict[str, Spoiler] = {
    "bytes": of_bytes(_FILE, 1 << 22),
    "zip": _zip,
    "program": _json(_PROGRAM, _any_place),
    "nodes": _json(_PROGRAM, _node),
    "arguments": _json(_PROGRAM, _arguments),
    "operators": _json(_PROGRAM, _targets),
    "cycle": _json(_PROGRAM, _cycle),
    "nested": _json(_PROGRAM, _nested),
    "shapes": _json(_INDEX, _shapes),
    "offsets": _json(_INDEX, _offsets),
    "paths": _json(_INDEX, _paths),
    "a billion tensors": _members(_many),
    "pickle": _members(_pickled),
    "deep": _members(_deep),
}
"""Spoilers of m.pt2 by name."""
