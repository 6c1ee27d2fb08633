"""Dry runs of many configs on many pods, as a Markdown table.

pixelrec dryrun_table --study=encoders --results=encoders.jsonl

A compilation takes minutes. Every result is added to --results at once, so that the same command
continues an interrupted study; --compile=False only prints the table of the existing results.
"""

from collections.abc import Sequence

from absl import flags

from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest


def _define_flags() -> None:
    flags.DEFINE_string("study", "encoders", "which cases: encoders or mf_pixel8m")
    program.define_path("results", None, "file of results, which is extended", required=True)
    flags.DEFINE_bool("compile", True, "whether to compile missing cases")


def main(_: Sequence[str]) -> None:
    """Compiles the missing cases of the study and prints its table."""
    from pixelrec_jax.launch.dryrun import table
    from pixelrec_jax.launch.dryrun.estimate import writable
    from pixelrec_jax.launch.dryrun.programs import leave_cache

    leave_cache()
    values = flags.FLAGS
    if values.study not in table.STUDIES:
        raise UserError(f"unknown --study={values.study!r}{nearest(values.study, table.STUDIES)}")
    cases = list(table.STUDIES[values.study]())
    path = writable("results", values.results)
    known = table.read(path)
    for number, case in enumerate(cases, start=1):
        if values.compile and case.key not in known:
            known[case.key] = table.measure(case, path)
            cells = " ".join(table.row(case, known[case.key]))
            print(f"{number}/{len(cases)} {cells}", flush=True)
    lines = [table.COLUMNS, ["---"] * len(table.COLUMNS)]
    lines += [table.row(case, known[case.key]) for case in cases if case.key in known]
    print("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


if __name__ == "__main__":
    _define_flags()
    program.run(main)
