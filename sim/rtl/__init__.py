"""The generated hardware under Verilator: fast vectors for units, whole designs as devices."""
