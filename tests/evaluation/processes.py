"""Evaluations in their own processes, some of which are killed.

    python -m tests.evaluation.processes kill DEATHS ASKED OVERRIDES…
    python -m tests.evaluation.processes wait OVERRIDES…

`kill` runs one evaluation after the other, each forked from a process that has paid for the imports. Each ends by
kill -9 when it has written half of a batch into the journal: DEATHS (a list in JSON) says which batch. Its exit code is
a line on standard output. A character for every row that is asked goes to the file ASKED.
`wait` pays for the imports and evaluates when a line comes on standard input.
"""

import json
import os
import signal
import sys
from pathlib import Path

import mlflow.pyfunc.loaders.code_model  # noqa: F401
import onnxruntime_genai  # noqa: F401
import pandas  # noqa: F401

from steps import evaluate
from steps.evaluation import metric_loading
from steps.evaluation.asking import Asker
from steps.evaluation.journal import Journal


class DeadlyEntries(dict):
    """Entries of which the process reads only half before it is killed."""

    def items(self):
        for number, item in enumerate(super().items()):
            if number == len(self) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


def kill(deaths, asked):
    count_rows(asked)
    # No evaluation gets as far as its scores, so none needs a metric.
    metric_loading.load_metrics = dict.fromkeys
    for batch in deaths:
        child = os.fork()
        if not child:
            die_in_batch(batch)
            evaluate.main()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def count_rows(asked):
    """Write a character for each row that is asked."""
    ask = Asker.ask

    def counting(self, questions):
        with asked.open("a") as file:
            file.write("x" * len(questions))
        return ask(self, questions)

    Asker.ask = counting


def die_in_batch(batch):
    """Have this process killed in the middle of the given call of Journal.add."""
    add, calls = Journal.add, iter(range(1, batch + 1))

    def deadly(self, entries):
        return add(self, DeadlyEntries(entries) if next(calls) == batch else entries)

    Journal.add = deadly


if __name__ == "__main__":
    action = sys.argv.pop(1)
    if action == "kill":
        kill(json.loads(sys.argv.pop(1)), Path(sys.argv.pop(1)))
    else:
        input()
        evaluate.main()
