"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.runtime":
    raise ImportError(
        "import flightllm.runtime, not runtime: the folder is a part of the flightllm package"
    )
