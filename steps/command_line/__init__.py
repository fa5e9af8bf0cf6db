"""From the command line to a step: `-P key=value` and `key=value` are Hydra overrides.

overrides.py reads the arguments, composition.py makes a typed configuration of them, running.py runs the step.
"""

from steps.command_line.composition import check, compose, to_yaml, without_foreign_keys
from steps.command_line.overrides import expand, key_of, parse
from steps.command_line.running import exit_on_error, run, run_with_hydra
from steps.command_line.variant_list import listed_variants, pick
from steps.command_line.variant_name import variant_name

__all__ = [
    "check",
    "compose",
    "exit_on_error",
    "expand",
    "key_of",
    "listed_variants",
    "parse",
    "pick",
    "run",
    "run_with_hydra",
    "to_yaml",
    "variant_name",
    "without_foreign_keys",
]
