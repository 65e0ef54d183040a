"""Equal components become one module: elaborated once, converted once, instantiated many times.

Amaranth elaborates every instance anew, and a device holds hundreds of equal lanes. A class marked
`shared` is elaborated as usual, unless the platform is a `Library`: there the first of its kind is
converted to a module of its own, and each becomes an instance of that.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, ClockSignal, Fragment, Instance, ResetSignal, Value
from amaranth.lib import wiring

from flightllm.hw.memory.axi import direction
from flightllm.hw.memory.ram import ExternalRams

__all__ = ["Library", "shared"]

_TOP = "attribute \\top 1\n"


def shared(*domains: str, clocked: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Class decorator: instances made with equal arguments are equal.

    The component must not stand inside a ResetInserter or EnableInserter: those do not reach into
    an instance.

    Parameters
    ----------
    domains : of the component, beyond `sync`, whose clock they share.
    clocked : further ones, with clocks of their own.
    """

    def mark(kind: Any) -> Any:
        made, elaborate = kind.__init__, kind.elaborate
        signature = inspect.signature(made)

        @functools.wraps(made)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.made_of = (kind, *map(_identity, list(bound.arguments.values())[1:]))
            made(self, *args, **kwargs)

        @functools.wraps(elaborate)
        def instead(self: Any, platform: Any) -> Any:
            if isinstance(platform, Library):
                return platform.instance(self, elaborate, ("sync", *domains), clocked)
            return elaborate(self, platform)

        kind.__init__, kind.elaborate = init, instead
        return kind

    return mark


def _identity(value: Any) -> Any:
    """Something that is equal for equal arguments, and can be a key."""
    if hasattr(value, "made_of"):
        return value.made_of
    if isinstance(value, (list, tuple)):
        return tuple(map(_identity, value))
    if isinstance(value, dict):
        return tuple((_identity(k), _identity(v)) for k, v in value.items())
    if value is None or isinstance(value, (bool, int, float, str, Enum)):
        return value
    if dataclasses.is_dataclass(value):
        return repr(value)
    return type(value), _identity(vars(value))


class Library(ExternalRams):
    """A platform that gathers the modules of shared components.

    Parameters
    ----------
    lut_rams : see `ExternalRams`.

    Members
    -------
    texts : RTLIL of each module, its submodules included, by name; parts before what uses them.
    """

    def __init__(self, lut_rams: bool = False) -> None:
        self.lut_rams = lut_rams
        self._names: dict[Any, str] = {}
        self.texts: dict[str, str] = {}

    def instance(self, component: Any, elaborate: Any, domains: tuple[str, ...],
                 clocked: tuple[str, ...]) -> Instance:  # fmt: skip
        """An instance of the component's module, which is made if it is new."""
        ports = {
            "__".join(map(str, path)): (Value.cast(value), member.flow)
            for path, member, value in component.signature.flatten(component)
            if len(Value.cast(value))
        }
        name = self._names.get(component.made_of)
        if name is None:
            name = self._new_name(type(component).__name__)
            self._names[component.made_of] = name
            module = elaborate(component, self)
            text = self._convert(name, module, ports, domains, clocked)
            self.texts[name] = text.replace(_TOP, "")
        connections = {"i_clk": ClockSignal()}
        for domain in (*domains, *clocked):
            connections[f"i_{_reset(domain)}"] = ResetSignal(domain)
        for domain in clocked:
            connections[f"i_{domain}_clk"] = ClockSignal(domain)
        for port, (value, flow) in ports.items():
            connections[f"{'i' if flow == wiring.In else 'o'}_{port}"] = value
        return Instance(name, **connections)

    def _new_name(self, name: str) -> str:
        taken = set(self._names.values())
        number, candidate = 1, name
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def _convert(self, name: str, module: Any, ports: dict[str, Any],
                 domains: tuple[str, ...], clocked: tuple[str, ...]) -> str:  # fmt: skip
        fragment = Fragment.get(module, self)
        made = [ClockDomain(domain) for domain in domains]
        clock = made[0].clk
        all_ports: dict[str, Any] = {"clk": (clock, None)}
        for domain in made:
            domain.clk = clock
        made += [ClockDomain(domain) for domain in clocked]
        for domain in made:
            all_ports[_reset(domain.name)] = (domain.rst, None)
            if domain.name in clocked:
                all_ports[f"{domain.name}_clk"] = (domain.clk, None)
        fragment.add_domains(made)
        all_ports |= {port: (value, direction(flow)) for port, (value, flow) in ports.items()}
        text: str = rtlil.convert_fragment(fragment, all_ports, name, emit_src=False)[0]
        return text


def _reset(domain: str) -> str:
    return "rst" if domain == "sync" else f"{domain}_rst"
