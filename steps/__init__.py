"""Steps of the MLflow project: build, evaluate, register, and main, which is the three in one."""

import sys

from steps import interrupts

# So it is while `python -m steps.NAME` imports this package. A step's own imports take half a second.
if sys.argv[0] == "-m":
    sys.excepthook = interrupts.report
