"""Which tools and which parts of a chip each board needs: one table, by part number."""

from __future__ import annotations

from dataclasses import dataclass

from flightllm.spec.config import HwConfig
from flightllm.spec.errors import InputError

__all__ = ["Alveo", "Ecp5", "Family", "Versal", "Zynq", "family"]


@dataclass(frozen=True)
class Alveo:
    """A card that Vitis builds for.

    Parameters
    ----------
    platform : the shell. banks : HBM pseudo-channels. tools : what the project is written for.
    """

    platform: str
    banks: int
    tools: str = "Vitis 2023.2"


@dataclass(frozen=True)
class Zynq:
    """A chip with an Arm processing system whose memory the accelerator shares.

    Parameters
    ----------
    ultrascale : Zynq UltraScale+, else Zynq-7000. board : pattern of Vivado's board files.
    ports : high-performance ports of the processing system. port_bits : their width.
    """

    ultrascale: bool
    board: str
    ports: int
    port_bits: int
    tools: str = "Vivado 2024.1"


@dataclass(frozen=True)
class Versal:
    """A Versal device: its memory lies behind the network on chip.

    Parameters
    ----------
    board : pattern of Vivado's board files, "" where the design needs none.
    memory : "hbm" or "ddr". host : "ps" (Linux on the device) or "pcie".
    """

    board: str
    memory: str
    host: str
    tools: str = "Vivado 2024.2"


@dataclass(frozen=True)
class Ecp5:
    """A Lattice ECP5, for which there are open tools.

    Parameters
    ----------
    options : of nextpnr, for the chip.
    """

    options: str
    tools: str = "Yosys 0.70 and nextpnr 0.11 (pip install 'flightllm[ecp5]')"


Family = Alveo | Ecp5 | Versal | Zynq

_FAMILIES: dict[str, Family] = {
    "xcu50-fsvh2104-2-e": Alveo("xilinx_u50_gen3x16_xdma_5_202210_1", 32),
    "xcu55c-fsvh2892-2L-e": Alveo("xilinx_u55c_gen3x16_xdma_3_202210_1", 32),
    "xcu280-fsvh2892-2L-e": Alveo("xilinx_u280_gen3x16_xdma_1_202211_1", 32),
    "xczu7ev-ffvc1156-2-e": Zynq(True, "*:zcu104:*", 4, 128),
    "xck26-sfvc784-2LV-c": Zynq(True, "*:kv260_som:*", 4, 128),
    "xc7z020clg400-1": Zynq(False, "*:pynq-z2:*", 4, 64),
    "xcv80-lsva4737-2MHP-e-S": Versal("", "hbm", "pcie"),
    "xcvh1582-vsva3697-2MP-e-S": Versal("*:vhk158:*", "hbm", "ps"),
    "LFE5U-85F-6BG381C": Ecp5("--85k --package CABGA381 --speed 6"),
    "xcvc1902-vsva2197-2MP-e-S": Versal("*:vck190:*", "ddr", "ps"),
}


def family(config: HwConfig) -> Family:
    """What a configuration's part belongs to.

    Raises
    ------
    InputError
        When there is no project for the part; names the parts there are.
    """
    found = _FAMILIES.get(config.part)
    if found is None:
        raise InputError(
            f"part: {config.part!r} has no project, only {', '.join(sorted(_FAMILIES))}"
        )
    return found
