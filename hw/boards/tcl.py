"""Writing Tcl for Vivado's block designs: cells, connections, addresses."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Design", "braced"]


def braced(value: object) -> str:
    """A value as one Tcl word."""
    return "{" + str(value) + "}"


def _dictionary(config: Mapping[str, object]) -> str:
    pairs = (f"CONFIG.{name} {braced(value)}" for name, value in config.items())
    return "[list " + " \\\n  ".join(pairs) + "]"


class Design:
    """A block design as the commands that make it, in order.

    Members
    -------
    lines : Tcl.
    """

    def __init__(self, name: str) -> None:
        self.lines = [f"create_bd_design {name}"]

    def cell(self, name: str, vlnv: str, config: Mapping[str, object] | None = None) -> None:
        """Add an IP. A version may be left out: the newest that is installed is taken."""
        self.lines.append(f"create_bd_cell -type ip -vlnv {vlnv} {name}")
        if config:
            self.configure(f"[get_bd_cells {name}]", config)

    def configure(self, what: str, config: Mapping[str, object]) -> None:
        """Set properties of an object, given as the Tcl that finds it."""
        self.lines.append(f"set_property -dict {_dictionary(config)} {what}")

    def pin(self, pin: str, config: Mapping[str, object]) -> None:
        """Set properties of an interface pin."""
        self.configure(f"[get_bd_intf_pins {pin}]", config)

    def join(self, one: str, two: str) -> None:
        """Connect two interface pins."""
        self.lines.append(
            f"connect_bd_intf_net [get_bd_intf_pins {one}] [get_bd_intf_pins {two}]"
        )

    def net(self, source: str, *sinks: str) -> None:
        """Connect pins."""
        pins = " ".join(f"[get_bd_pins {pin}]" for pin in (source, *sinks))
        self.lines.append(f"connect_bd_net {pins}")

    def address(self, space: str, segment: str, offset: int, size: int) -> None:
        """Place a slave's segment in a master's address space."""
        self.lines.append(
            f"assign_bd_address -offset {offset:#x} -range {size:#x} -target_address_space"
            f" [get_bd_addr_spaces {space}] [get_bd_addr_segs {segment}] -force"
        )

    def command(self, line: str) -> None:
        """Any other command."""
        self.lines.append(line)

    def text(self) -> str:
        """The script."""
        return "\n".join([*self.lines, "validate_bd_design", "save_bd_design", ""])
