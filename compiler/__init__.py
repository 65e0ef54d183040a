"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.compiler":
    raise ImportError(
        "import flightllm.compiler, not compiler: the folder is a part of the flightllm package"
    )
