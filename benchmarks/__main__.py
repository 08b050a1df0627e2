"""Run every benchmark that needs no data file: ``python -m benchmarks``."""

from benchmarks import decision, engine, environment, han, learning, predictors

for benchmark in (engine, environment, han, learning, decision, predictors):
    print(f"== {benchmark.__name__}")
    benchmark.main()
    print()
