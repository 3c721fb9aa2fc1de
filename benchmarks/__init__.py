"""Benchmarks of lmm_gpu, one script per question; `python -m benchmarks` runs them all."""
