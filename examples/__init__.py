"""Example configs, trainings and a model family. Benchmarks and tests use them too."""
