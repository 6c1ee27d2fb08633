"""Prints the test metrics of one or several runs side by side, with their baselines.

pixelrec report runs/pixel runs/id --examples=3
pixelrec report --unfinished runs/figure9/*
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.system import program, storage


def _define_flags() -> None:
    flags.DEFINE_bool("unfinished", False, "show runs without a result instead of stopping")
    flags.DEFINE_enum("format", "text", ["text", "markdown", "csv", "latex"], "of the table")
    flags.DEFINE_integer("examples", 0, "users to show with histories and top lists", 0)
    flags.DEFINE_integer("seed", 0, "which users these are", 0)


def main(argv: Sequence[str]) -> None:
    """Prints the table of the runs named on the command line, and with --examples some users."""
    from pixelrec_jax.runs import examples, report

    workdirs = [storage.path(workdir) for workdir in argv[1:]]
    values = flags.FLAGS
    print(report.table(workdirs, unfinished=values.unfinished, form=values.format))
    if not flags.FLAGS.examples:
        return
    for workdir in workdirs:
        print(f"\n{workdir}")
        print(examples.show(workdir, users=flags.FLAGS.examples, seed=flags.FLAGS.seed))


if __name__ == "__main__":
    _define_flags()
    program.run(main, arguments="WORKDIR [WORKDIR ...]")
