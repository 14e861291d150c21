"""`vqaloop tune`."""

import argparse
from pathlib import Path

from vqaloop.cli.arguments import Command
from vqaloop.cli.options import executor_options, opened_executor, part_of, part_options
from vqaloop.cli.output import UNTRUSTED, emit, loading, progress_of, say
from vqaloop.core.option_fields import add_options, given_options
from vqaloop.execution.options import Running
from vqaloop.tuning.options import TuneOptions


def run_tune(options: argparse.Namespace) -> int:
    """Exit status 3 where verification contradicts the search."""
    with loading(options):
        from vqaloop.tuning.result import tuning_lines
        from vqaloop.tuning.tune import tune_encoder

    asked = given_options(TuneOptions, options)
    with (
        part_of(options, [options.input]) as (title,),
        opened_executor(options) as workers,
        progress_of(options) as progress,
    ):
        tuning = tune_encoder(title, **{**asked, "workers": workers, "progress": progress})
    for line in tuning_lines(tuning):
        say(options, line)
    emit(options, tuning.to_json())
    return 0 if tuning.trusted else UNTRUSTED


def add_tune(command: Command) -> None:
    """The command with its options."""
    tune = command("tune", run_tune, "find encoder parameters that save bitrate on a title")
    tune.add_argument("input", metavar="INPUT", type=Path)
    part_options(tune)
    add_options(tune, TuneOptions, but=Running)
    executor_options(tune)
