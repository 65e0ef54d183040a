"""See the module list in docs/concepts.md."""
if __name__ != "flightllm.spec":
    raise ImportError(
        "import flightllm.spec, not spec: the folder is a part of the flightllm package"
    )
