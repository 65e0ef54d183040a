"""The errors a user can cause or must know of; the command line turns each into its exit code."""

__all__ = ["DeviceError", "FlightError", "InputError", "MissingToolError", "VerifyError"]


class FlightError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code = 1


class VerifyError(FlightError):
    """A comparison failed or an internal invariant does not hold; names what and where."""


class DeviceError(FlightError):
    """A board does not do what it should, or is not free: one sentence, with unit and state."""


class InputError(FlightError, ValueError):
    """The user's input is wrong: one sentence saying what, where and what to do."""

    exit_code = 2


class MissingToolError(FlightError):
    """A tool or optional package that this step needs is not installed."""

    exit_code = 3
