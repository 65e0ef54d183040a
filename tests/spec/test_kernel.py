"""kernel.xml: ports, and every register at the address of the register map."""

from xml.etree import ElementTree

import pytest

from flightllm.spec.config import load_config
from flightllm.spec.handoff import VLNV
from flightllm.spec.kernel import kernel_element, kernel_xml
from flightllm.spec.registers import ADDRESS_BITS, address


@pytest.mark.parametrize("board", ["tiny", "u50", "u280"])
def test_kernel_xml_has_every_port_and_register(board: str) -> None:
    config = load_config(board)
    kernel = ElementTree.fromstring(kernel_xml(config)).find("kernel")
    assert kernel is not None and kernel.get("vlnv") == VLNV
    assert kernel.get("hwControlProtocol") == "user_managed"
    ports = {port.get("name"): port for port in kernel.iter("port")}
    assert len(ports) == 1 + sum(config.channels)
    assert int(ports["s_axi_control"].get("range"), 0) == 1 << ADDRESS_BITS
    assert ports["m_axi_00"].get("dataWidth") == str(config.memory.port_bits)
    arguments = {item.get("name"): item for item in kernel.iter("arg")}
    places = [int(item.get("offset"), 0) for item in arguments.values()]
    assert len(set(places)) == len(places)
    assert [int(item.get("id")) for item in kernel.iter("arg")] == list(range(len(places)))
    last = config.cores - 1
    for name, place in (
        ("CONTROL", address("CONTROL")),
        ("CONFIG_DIGEST_7", address("CONFIG_DIGEST", 7)),
        (f"core{last}_ENTRY", address("ENTRY", core=last)),
        (f"core{last}_COUNT_BEATS_5", address("COUNT_BEATS", 5, last)),
    ):
        assert int(arguments[name].get("offset"), 0) == place


def test_each_channel_s_base_belongs_to_its_port() -> None:
    kernel = ElementTree.fromstring(kernel_xml(load_config("u280")))
    bases = {item.get("port"): item for item in kernel.iter("arg") if item.get("size") == "0x8"}
    assert len(bases) == 32
    assert int(bases["m_axi_00"].get("offset"), 0) == address("CHANNEL_BASE_LOW")
    assert int(bases["m_axi_11"].get("offset"), 0) == address("CHANNEL_BASE_LOW", 0, 1)
    assert int(bases["m_axi_31"].get("offset"), 0) == address("CHANNEL_BASE_LOW", 9, 2)


def test_an_instance_says_where_it_lies() -> None:
    text = kernel_element(load_config("tiny"), 0x1234)
    assert ElementTree.fromstring(text).find("instance/addrRemap").get("base") == "0x1234"
