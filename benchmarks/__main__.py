"""Run every benchmark that needs no data file: ``python -m benchmarks``."""

from benchmarks import engine, environment, han, learning

for benchmark in (engine, environment, han, learning):
    print(f"== {benchmark.__name__}")
    benchmark.main()
    print()
