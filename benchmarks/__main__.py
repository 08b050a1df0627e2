"""Run every benchmark that needs no data file: ``python -m benchmarks``."""

from benchmarks import decision, engine, environment, gateway_decision, han, learning, predictors

for benchmark in (engine, environment, han, learning, decision, gateway_decision, predictors):
    print(f"== {benchmark.__name__}")
    benchmark.main()
    print()
