"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.sim":
    raise ImportError(
        "import flightllm.sim, not sim: the folder is a part of the flightllm package"
    )
