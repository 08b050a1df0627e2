"""Run every benchmark that needs no data file: ``python -m benchmarks``."""

from benchmarks import engine, environment

for benchmark in (engine, environment):
    print(f"== {benchmark.__name__}")
    benchmark.main()
    print()
