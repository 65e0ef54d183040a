"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.models":
    raise ImportError(
        "import flightllm.models, not models: the folder is a part of the flightllm package"
    )
