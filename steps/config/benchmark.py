"""The keys of the step `benchmark`."""

from dataclasses import dataclass

from steps.config.keys import key

SIZES = ("small", "medium", "phi3_mini")
SECTIONS = ("scoring", "engines", "limits", "serving", "evaluation", "storage", "startup")
# What needs packages or programs that this project does not install is measured only if it is asked for.
OPTIONAL = ("llama_cpp", "openvino")
# torch's names. Those that this machine lacks are left out.
DEVICES = ("cpu", "cuda")


@dataclass
class BenchmarkConfig:
    """What to measure: a random Phi-3 of which `size`, which `sections`, in how many `rounds`, on which `devices`."""

    size: str = key("small", one_of=SIZES)
    sections: list[str] = key(list(SECTIONS), needed=True, all_of=(*SECTIONS, *OPTIONAL))
    rounds: int = key(3, at_least=1, at_most=100)
    devices: list[str] = key(list(DEVICES), needed=True, all_of=DEVICES)
