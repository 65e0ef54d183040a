"""A hardware hand-off as Vivado writes it, cut down to what PYNQ reads of a Zynq design.

Elements and attributes are those of the .hwh files that come with PYNQ's own tests.
"""

from __future__ import annotations

from flightllm.spec.handoff import CONTROL_PORT, INSTANCE, VLNV
from flightllm.spec.registers import ADDRESS_BITS

__all__ = ["bit_file", "zynq_hwh"]

AXI = "xilinx.com:interface:aximm:1.0"


def _clocks() -> str:
    lines = []
    for clock in range(4):
        name = f"PSU__CRL_APB__PL{clock}_REF_CTRL__"
        lines += [
            f'<PARAMETER NAME="PSU__FPGA_PL{clock}_ENABLE" VALUE="{int(clock == 0)}"/>',
            f'<PARAMETER NAME="{name}DIVISOR0" VALUE="5"/>',
            f'<PARAMETER NAME="{name}DIVISOR1" VALUE="1"/>',
            f'<PARAMETER NAME="{name}SRCSEL" VALUE="IOPLL"/>',
            f'<PARAMETER NAME="{name}ACT_FREQMHZ" VALUE="150"/>',
        ]
    return "".join(lines)


def zynq_hwh(base: int, vlnv: str = VLNV) -> str:
    """The accelerator behind the processing system's first master port, registers at `base`."""
    high = base + (1 << ADDRESS_BITS) - 1
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<EDKSYSTEM EDWVERSION="1.2" TIMESTAMP="Thu Jan 1 00:00:00 2026" VIVADOVERSION="2024.1">
 <SYSTEMINFO ARCH="zynquplus" DEVICE="xck26" NAME="design_1" PACKAGE="sfvc784" SPEEDGRADE="-2LV"/>
 <EXTERNALPORTS/>
 <EXTERNALINTERFACES/>
 <MODULES>
  <MODULE FULLNAME="/ps" HWVERSION="3.5" INSTANCE="ps" IPTYPE="PERIPHERAL" IS_ENABLE="1"
   MODCLASS="PERIPHERAL" MODTYPE="zynq_ultra_ps_e" VLNV="xilinx.com:ip:zynq_ultra_ps_e:3.5">
   <PARAMETERS>{_clocks()}</PARAMETERS>
   <PORTS/>
   <BUSINTERFACES>
    <BUSINTERFACE BUSNAME="bus" NAME="M_AXI_HPM0_FPD" TYPE="MASTER" VLNV="{AXI}">
     <PORTMAPS/>
    </BUSINTERFACE>
   </BUSINTERFACES>
   <MEMORYMAP>
    <MEMRANGE ADDRESSBLOCK="reg0" BASENAME="C_BASEADDR" BASEVALUE="{base:#010x}"
     HIGHNAME="C_HIGHADDR" HIGHVALUE="{high:#010x}" INSTANCE="{INSTANCE}" IS_DATA="TRUE"
     MASTERBUSINTERFACE="M_AXI_HPM0_FPD" MEMTYPE="REGISTER" SLAVEBUSINTERFACE="{CONTROL_PORT}"/>
   </MEMORYMAP>
  </MODULE>
  <MODULE FULLNAME="/{INSTANCE}" HWVERSION="1.0" INSTANCE="{INSTANCE}" IPTYPE="PERIPHERAL"
   IS_ENABLE="1" MODCLASS="PERIPHERAL" MODTYPE="flightllm" VLNV="{vlnv}">
   <PARAMETERS/>
   <PORTS/>
   <BUSINTERFACES>
    <BUSINTERFACE BUSNAME="bus" NAME="{CONTROL_PORT}" TYPE="SLAVE" VLNV="{AXI}">
     <PORTMAPS/>
    </BUSINTERFACE>
   </BUSINTERFACES>
  </MODULE>
 </MODULES>
</EDKSYSTEM>
"""


def bit_file(data: bytes) -> bytes:
    """`data` as a .bit file, with the header that Vivado writes."""

    def text(letter: bytes, value: str) -> bytes:
        raw = value.encode() + b"\0"
        return letter + len(raw).to_bytes(2, "big") + raw

    return b"".join(
        [
            b"\x00\x09" + bytes(9) + b"\x00\x01",
            text(b"a", "design_1;UserID=0XFFFFFFFF;Version=2024.1"),
            text(b"b", "xck26-sfvc784-2LV-c"),
            text(b"c", "2026/01/01"),
            text(b"d", "00:00:00"),
            b"e" + len(data).to_bytes(4, "big") + data,
        ]
    )
