"""Write a checkpoint of a Phi-3 shape with random weights, and print the bytes, the seconds and the peak memory.

python -m tests.benchmarks.checkpoint phi3_mini FOLDER
python -m steps.build model=local model.path=FOLDER mode=onnx precision=int4
"""

import argparse
import resource
from pathlib import Path
from time import perf_counter

from steps.benchmarking.checkpoint import SHAPES, write_checkpoint
from steps.output import signs_of_life

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    started = perf_counter()
    with signs_of_life():
        size = write_checkpoint(SHAPES[arguments.shape], arguments.folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{arguments.folder}: {size:,} bytes in {perf_counter() - started:.0f} s, peak memory {peak:.1f} GB")
