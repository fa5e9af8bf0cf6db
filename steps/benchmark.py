"""Compare this project with what it is built on, on this machine, side by side.

    mlflow run . -e benchmark
    mlflow run . -e benchmark -P size=medium -P sections=[engines,serving]
    python -m steps.benchmark rounds=9 sections=[startup]

Reads conf/benchmark.yaml. Makes a random Phi-3 and its variants in a folder that is deleted at the end; your store gets
one run, with a table, a plot of each section, and facts about the machine. docs/benchmarks.md says what each section
compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from steps import command_line
from steps.benchmarking import report
from steps.benchmarking.comparison import Result, compare
from steps.benchmarking.control import control
from steps.benchmarking.place import SIZES, Place
from steps.benchmarking.sections import check_installed, get_section
from steps.checkpoints.disk_space import explain_full_temporary_folder
from steps.config.benchmark import BenchmarkConfig
from steps.errors import StepError
from steps.evaluation import machine
from steps.output import activity, echo
from steps.store import runs


def benchmark(config: BenchmarkConfig) -> list[Result]:
    """Measure the sections, print and log every result, and return them.

    Raises:
        StepError: A command that was measured failed, a section needs what is not installed, or the disk is full.
    """
    import mlflow

    check_installed(config.sections)
    size, devices = SIZES[config.size], devices_here(config.devices)
    with runs.start(f"benchmark-{size.name}"), TemporaryDirectory(prefix="phi3-benchmark-") as folder:
        with activity("measuring this machine"):
            facts = machine.facts() | _gpu(devices)
        mlflow.log_params({"size": size.name, "sections": ",".join(config.sections), "rounds": config.rounds})
        mlflow.log_params({name: facts[name] for name in ("processor", "cores", "gpu") if name in facts})
        where = report.machine(facts)
        echo(f"Benchmark {size.name}: a random Phi-3 with {size.words}, on {where}")
        results: list[Result] = []
        try:
            with explain_full_temporary_folder():
                for device in devices:
                    for result in _measure(config, Place(Path(folder) / device, size, device)):
                        echo(report.sentence(result))
                        results.append(result)
        finally:
            # Also what was measured before a failure, or before Ctrl-C.
            if results:
                report.log(results, facts)
    noisy = sum(result.ratio is None for result in results)
    echo(f"{len(results)} comparisons, {noisy} without a ratio because the machine was too noisy")
    return results


def _measure(config: BenchmarkConfig, place: Place) -> Iterator[Result]:
    check = control(place.device)
    for section in config.sections:
        name = section if place.device == "cpu" else f"{section}-{place.device}"
        for comparison in get_section(section)(place):
            with activity(f"comparing {comparison.ours.name} with {comparison.theirs.name}"):
                result = compare(name, comparison, config.rounds, check)
            del comparison  # and its models, which the next one need not share the memory with
            yield result


def devices_here(wanted: list[str]) -> list[str]:
    """Return those of the devices that this machine has; raise StepError if it has none of them."""
    import torch

    there = [device for device in wanted if device != "cuda" or torch.cuda.is_available()]
    if not there:
        raise StepError("devices=[cuda] needs a GPU that torch can use, and this machine has none: take devices=[cpu].")
    return there


def _gpu(devices: list[str]) -> dict[str, str]:
    """Return the name of the GPU, if one of the devices is one."""
    import torch

    return {"gpu": torch.cuda.get_device_name()} if "cuda" in devices else {}


def main() -> None:
    """Run the step from the command line."""
    command_line.run("benchmark", benchmark)


if __name__ == "__main__":
    main()
