"""Run every benchmark that needs no data file: ``python -m benchmarks``."""

from benchmarks import decision, engine, environment, han, learning

for benchmark in (engine, environment, han, learning, decision):
    print(f"== {benchmark.__name__}")
    benchmark.main()
    print()
