"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.hw":
    raise ImportError(
        "import flightllm.hw, not hw: the folder is a part of the flightllm package"
    )
