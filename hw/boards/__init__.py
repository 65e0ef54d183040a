"""Projects that turn a configuration into a bitstream, for each family of boards."""
